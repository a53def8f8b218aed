"""inference.GRPCInferenceService, the Open Inference Protocol: from encoded requests to encoded answers."""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.message import Message

from serving import build_info
from serving.api import tensors
from serving.api.bounds import require_short_texts
from serving.api.infer_by_run import InferParser, join_in_stream
from serving.api.infer_messages import (
    InferAnswer,
    InferRequest,
    encode_infer,
    encode_stream_infer,
    parse_infer,
    refuse_in_stream,
)
from serving.api.rpc import ByRun, Method, Work
from serving.call import Call
from serving.errors import InvalidRequest, ModelNotReady, PermissionDenied, UnknownModel, Unsupported
from serving.pb.inference import open_inference_pb2 as pb
from serving.recognition.recognizer import Recognizer
from serving.repository.catalog import Catalog, Loaded
from serving.repository.model_control import ModelControl
from serving.security.token_file import Role
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_INFER_REQUEST = pb.ModelInferRequest.DESCRIPTOR.full_name
_SERVER_NAME = "postal-digits"

# Triton's names for an ONNX model on ONNX Runtime; clients choose by them how to talk to a model.
_PLATFORM = "onnxruntime_onnx"
_BACKEND = "onnxruntime"

_MAX_BYTES_WITHOUT_IMAGES = 1 << 16  # of a request that holds a few names

_DATA_TYPES = {"UINT8": pb.TYPE_UINT8, "FP32": pb.TYPE_FP32}


class OpenInference:
    """The tensor API, as protos/inference/open_inference.proto defines it. Every method may raise RequestError."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        control: ModelControl,
        recognizer: Recognizer,
        metrics: Metrics,
        unready: Callable[[], str],
    ):
        """Takes the parts that the API shows.

        Args:
            settings: how models run, and permission for callers to load and unload models.
            catalog: the models.
            control: loads and unloads models.
            recognizer: reads images.
            metrics: has the statistics of the models.
            unready: returns the reason that the server wants no requests; "" when it is ready.
        """
        self._settings = settings
        self._catalog = catalog
        self._control = control
        self._recognizer = recognizer
        self._metrics = metrics
        self._unready = unready
        # A thread of its own: any client may ask for statistics at any rate, and must not delay the loading of models.
        self._statistics_thread = ThreadPoolExecutor(1, thread_name_prefix="statistics")

    def methods(self) -> list[Method[Any, Any]]:
        """Lists the methods that callers may call. Any client may call those that only look."""
        parser = InferParser()
        parse = functools.partial(parse_infer, most_crops=self._settings.max_images_per_request)
        return [
            _method("ServerLive", pb.ServerLiveRequest, self.server_live, None),
            _method("ServerReady", pb.ServerReadyRequest, self.server_ready, None),
            _method("ModelReady", pb.ModelReadyRequest, self.model_ready, None),
            _method("ServerMetadata", pb.ServerMetadataRequest, self.server_metadata, None),
            _method("ModelMetadata", pb.ModelMetadataRequest, self.model_metadata, None),
            Method(
                NAME,
                "ModelInfer",
                _INFER_REQUEST,
                parse,
                self.infer,
                encode_infer,
                "recognize",
                by_run=ByRun(parser.parse, self._recognizer.enter),
            ),
            Method(
                NAME,
                "ModelStreamInfer",
                _INFER_REQUEST,
                parse,
                self.infer,
                encode_stream_infer,
                "recognize",
                refuse=refuse_in_stream,
                ordered=True,
                by_run=ByRun(parser.parse, self._recognizer.enter, join_in_stream),
            ),
            _method("ModelConfig", pb.ModelConfigRequest, self.model_config, None),
            _method("ModelStatistics", pb.ModelStatisticsRequest, self.model_statistics, None),
            _method("RepositoryIndex", pb.RepositoryIndexRequest, self.repository_index, None),
            _method("RepositoryModelLoad", pb.RepositoryModelLoadRequest, self.repository_model_load, "admin"),
            _method("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self.repository_model_unload, "admin"),
        ]

    async def infer(self, request: InferRequest, call: Call) -> InferAnswer:
        """Runs a model on the images of one request, and decides on them where the request asks for decisions."""
        if "decisions" not in request.outputs:
            return InferAnswer(request, await self._recognizer.infer(request.images, request.options, call), None)
        return InferAnswer(request, *await self._recognizer.recognize(request.images, request.options, call))

    async def server_live(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        """Reports that the process lives."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        """Reports the readiness of the server."""
        return pb.ServerReadyResponse(ready=not self._unready())

    async def model_ready(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Reports the readiness of a model, or of one version."""
        try:
            self._answering(request.name, request.version)
        except (UnknownModel, ModelNotReady):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        """Reports name, version and protocol extensions of the server."""
        extensions = ["model_configuration", "statistics"]
        if self._settings.model_control:
            extensions.append("model_repository")
        return pb.ServerMetadataResponse(name=_SERVER_NAME, version=build_info.version(), extensions=extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        """Reports the tensors of a model, and its versions that answer."""

        def described(named: Mapping[str, tensors.Tensor]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
            return [
                pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
                for tensor in named.values()
            ]

        answering = self._answering(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=answering[0].name,
            versions=[loaded.version for loaded in answering],
            platform=_PLATFORM,
            inputs=described(tensors.INPUTS),
            outputs=described(tensors.OUTPUTS[answering[0].model.metadata.contract]),
        )

    async def model_config(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        """Reports batching and execution provider of a model."""
        loaded = self._answering(request.name, request.version)[0]
        settings = self._settings
        config = pb.ModelConfig(
            name=loaded.name,
            platform=_PLATFORM,
            backend=_BACKEND,
            max_batch_size=settings.max_batch_size,
            dynamic_batching=pb.ModelDynamicBatching(
                max_queue_delay_microseconds=round(settings.max_queue_delay_ms * 1000),
            ),
        )
        for tensor in tensors.INPUTS.values():
            config.input.add(name=tensor.name, data_type=_DATA_TYPES[tensor.datatype], dims=tensor.dims)
        for tensor in tensors.OUTPUTS[loaded.model.metadata.contract].values():
            config.output.add(name=tensor.name, data_type=_DATA_TYPES[tensor.datatype], dims=tensor.dims)
        kind = pb.ModelInstanceGroup.KIND_CPU if settings.provider == "cpu" else pb.ModelInstanceGroup.KIND_GPU
        config.instance_group.add(name=loaded.name, count=settings.instances, kind=kind)
        return pb.ModelConfigResponse(config=config)

    async def model_statistics(self, request: pb.ModelStatisticsRequest, call: Call) -> pb.ModelStatisticsResponse:
        """Reports the counts and times of one model, or of all models."""
        if request.name:
            counted = self._answering(request.name, request.version)
        else:
            every = [loaded for name in self._catalog.names() for loaded in self._catalog.answering(name)]
            counted = [loaded for loaded in every if request.version in ("", loaded.version)]
        versions = [(loaded.name, loaded.version) for loaded in counted]
        return await asyncio.get_running_loop().run_in_executor(self._statistics_thread, self._statistics, versions)

    async def repository_index(self, request: pb.RepositoryIndexRequest, call: Call) -> pb.RepositoryIndexResponse:
        """Lists every model version on disk with its state."""
        _require_unnamed_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for entry in self._catalog.index():
            if entry.state == "READY" or not request.ready:
                response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        """Loads a model from its directory on disk."""
        self._require_control()
        _require_unnamed_repository(request.repository_name)
        if request.parameters:
            parameter = tensors.quote(min(request.parameters))
            raise InvalidRequest(
                f"parameter {parameter} is not supported: a model is loaded from its directory in the repository"
            )
        _require_model_name(request.model_name)
        await self._control.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """Takes a model out of service."""
        self._require_control()
        _require_unnamed_repository(request.repository_name)
        _require_model_name(request.model_name)
        await self._control.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _answering(self, name: str, version: str) -> list[Loaded]:
        """Finds the versions of a model that answer, at least one, stable first; with `version`, only that one.

        Raises:
            UnknownModel: there is no such model, or the version does not answer.
            ModelNotReady: no version of the model is loaded.
        """
        routed = self._catalog.route(name, version)
        return [routed] if version else self._catalog.answering(name)

    def _statistics(self, versions: Sequence[tuple[str, str]]) -> pb.ModelStatisticsResponse:
        """Builds statistics by model and version. Slow: reads the metrics of other workers from files."""
        response = pb.ModelStatisticsResponse()
        for (model, version), done in self._metrics.statistics(versions).items():
            # Compute time is the rest of success after queue, so that they add up to the nanosecond.
            success = _nanoseconds(done.answered_seconds)
            queue = min(_nanoseconds(done.queued_seconds), success)
            copied = pb.StatisticDuration(count=done.answered)  # perf_analyzer aborts where these counts differ
            response.model_stats.add(
                name=model,
                version=version,
                last_inference=round(done.last_request_seconds * 1000),
                inference_count=done.images,
                execution_count=done.runs,
                inference_stats=pb.InferStatistics(
                    success=pb.StatisticDuration(count=done.answered, ns=success),
                    fail=pb.StatisticDuration(count=done.failed, ns=_nanoseconds(done.failed_seconds)),
                    queue=pb.StatisticDuration(count=done.answered, ns=queue),
                    compute_input=copied,
                    compute_infer=pb.StatisticDuration(count=done.answered, ns=success - queue),
                    compute_output=copied,
                ),
            )
        return response

    def _require_control(self) -> None:
        if not self._settings.model_control:
            raise PermissionDenied("callers may not load or unload models here: the server runs without --model-control")


def _method(name: str, message_type: type[Message], work: Work[Any, Any], role: Role | None) -> Method[Any, Any]:
    """Describes a method whose request and answer are protobuf messages without images."""

    def parse(encoded: bytes) -> Message:
        request = message_type.FromString(encoded)
        require_short_texts(request)
        return request

    return Method(
        NAME, name, message_type.DESCRIPTOR.full_name, parse, work, _serialize, role, max_bytes=_MAX_BYTES_WITHOUT_IMAGES
    )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _require_unnamed_repository(name: str) -> None:
    if name:
        raise Unsupported(f"there is no repository {tensors.quote(name)}: this server has one, without a name")


def _require_model_name(name: str) -> None:
    if not name:  # elsewhere, no name means the default model; its loss must not be a slip
        raise InvalidRequest("model_name is empty, expected the name of a model")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
