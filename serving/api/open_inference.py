"""inference.GRPCInferenceService, the Open Inference Protocol: from decoded requests to decoded answers."""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import numpy as np

from serving.api import tensors
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import (
    InvalidRequest,
    ModelNotReady,
    PermissionDenied,
    RequestError,
    UnknownModel,
    Unsupported,
)
from serving.pb.inference import open_inference_pb2 as pb
from serving.recognition.policy import Policy
from serving.recognition.recognizer import Recognizer
from serving.repository.catalog import Catalog, Loaded
from serving.repository.model_control import ModelControl
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_DISTRIBUTION = "postal-digits"

# What Triton calls an ONNX model that ONNX Runtime runs; clients choose how they talk to a model by it.
_PLATFORM = "onnxruntime_onnx"
_BACKEND = "onnxruntime"

_DATA_TYPES = {"UINT8": pb.TYPE_UINT8, "FP32": pb.TYPE_FP32}


class OpenInference:
    """The tensor API, as protos/inference/open_inference.proto states it. Every method raises RequestError when it can't."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        control: ModelControl,
        recognizer: Recognizer,
        decider: Policy,
        metrics: Metrics,
        unready: Callable[[], str],
    ):
        """Puts it before what the native API has as well.

        Args:
            settings: how models are run, and whether callers may load and unload them.
            catalog: loaded models.
            control: what loads and unloads them.
            recognizer: what reads images.
            decider: what accepts or rejects their digits.
            metrics: what counts the models' work.
            unready: says why the server wants no requests; nothing when it does.
        """
        self._settings = settings
        self._catalog = catalog
        self._control = control
        self._recognizer = recognizer
        self._decider = decider
        self._metrics = metrics
        self._unready = unready
        # Any client may ask for statistics: however many do, models are loaded and files are read meanwhile.
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="statistics")

    def methods(self) -> list[Method[Any]]:
        """What can be called: what only looks, by any client."""
        return [
            Method("ServerLive", pb.ServerLiveRequest, self.server_live, None),
            Method("ServerReady", pb.ServerReadyRequest, self.server_ready, None),
            Method("ModelReady", pb.ModelReadyRequest, self.model_ready, None),
            Method("ServerMetadata", pb.ServerMetadataRequest, self.server_metadata, None),
            Method("ModelMetadata", pb.ModelMetadataRequest, self.model_metadata, None),
            Method("ModelInfer", pb.ModelInferRequest, self.model_infer, "recognize"),
            Method(
                "ModelStreamInfer",
                pb.ModelInferRequest,
                self.model_stream_infer,
                "recognize",
                refuse=self.refuse_in_stream,
                ordered=True,
            ),
            Method("ModelConfig", pb.ModelConfigRequest, self.model_config, None),
            Method("ModelStatistics", pb.ModelStatisticsRequest, self.model_statistics, None),
            Method("RepositoryIndex", pb.RepositoryIndexRequest, self.repository_index, None),
            Method("RepositoryModelLoad", pb.RepositoryModelLoadRequest, self.repository_model_load, "admin"),
            Method("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, self.repository_model_unload, "admin"),
        ]

    async def server_live(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        """That the process lives."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:
        """Whether the server wants requests."""
        return pb.ServerReadyResponse(ready=not self._unready())

    async def model_ready(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Whether a model, or one version of it, answers."""
        try:
            self._answering(request.name, request.version)
        except (UnknownModel, ModelNotReady):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(self, request: pb.ServerMetadataRequest, call: Call) -> pb.ServerMetadataResponse:
        """What this server is, and what of the protocol's extensions it has."""
        extensions = ["model_configuration", "statistics"]
        if self._settings.model_control:
            extensions.append("model_repository")
        return pb.ServerMetadataResponse(name=_DISTRIBUTION, version=_version(), extensions=extensions)

    async def model_metadata(self, request: pb.ModelMetadataRequest, call: Call) -> pb.ModelMetadataResponse:
        """The tensors of a model, and its versions that answer."""

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
            outputs=described(tensors.OUTPUTS),
        )

    async def model_infer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        """Runs a model on the images of one request."""
        response = pb.ModelInferResponse()
        await self._infer(request, call, response)
        return response

    async def model_stream_infer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelStreamInferResponse:
        """Runs a model on the images of one request of a stream."""
        answer = pb.ModelStreamInferResponse()
        await self._infer(request, call, answer.infer_response)
        # Triton's word to clients that read a stream until a request has had all its answers; here it has one.
        answer.infer_response.parameters["triton_final_response"].bool_param = True
        return answer

    @staticmethod
    def refuse_in_stream(request: pb.ModelInferRequest, error: RequestError, code: int) -> pb.ModelStreamInferResponse:
        """What a stream says in the place of an answer; the id tells its caller which request it was."""
        answer = pb.ModelStreamInferResponse(error_message=str(error))
        answer.infer_response.id = request.id
        return answer

    async def model_config(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:
        """How a model is batched, and on what it runs."""
        name = self._answering(request.name, request.version)[0].name
        settings = self._settings
        config = pb.ModelConfig(
            name=name,
            platform=_PLATFORM,
            backend=_BACKEND,
            max_batch_size=settings.max_batch_size,
            dynamic_batching=pb.ModelDynamicBatching(
                max_queue_delay_microseconds=round(settings.max_queue_delay_ms * 1000),
            ),
        )
        for tensor in tensors.INPUTS.values():
            config.input.add(name=tensor.name, data_type=_DATA_TYPES[tensor.datatype], dims=tensor.dims)
        for tensor in tensors.OUTPUTS.values():
            config.output.add(name=tensor.name, data_type=_DATA_TYPES[tensor.datatype], dims=tensor.dims)
        kind = pb.ModelInstanceGroup.KIND_CPU if settings.provider == "cpu" else pb.ModelInstanceGroup.KIND_GPU
        config.instance_group.add(name=name, count=settings.instances, kind=kind)
        return pb.ModelConfigResponse(config=config)

    async def model_statistics(self, request: pb.ModelStatisticsRequest, call: Call) -> pb.ModelStatisticsResponse:
        """What the versions that answer have done: of one model, or of all."""
        if request.name:
            counted = self._answering(request.name, request.version)
        else:
            every = [loaded for name in self._catalog.names() for loaded in self._catalog.answering(name)]
            counted = [loaded for loaded in every if request.version in ("", loaded.version)]
        versions = [(loaded.name, loaded.version) for loaded in counted]
        return await asyncio.get_running_loop().run_in_executor(self._counting, self._count, versions)

    async def repository_index(self, request: pb.RepositoryIndexRequest, call: Call) -> pb.RepositoryIndexResponse:
        """Every model version on disk, and whether it answers."""
        _require_the_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for entry in self._catalog.index():
            if entry.state == "READY" or not request.ready:
                response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        """Loads a model as it lies on disk."""
        self._require_control()
        _require_the_repository(request.repository_name)
        if request.parameters:
            parameter = tensors.shown(min(request.parameters))
            raise InvalidRequest(f"parameter {parameter} is not supported: a model is loaded as it lies in the repository")
        await self._control.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """Takes a model out of service."""
        self._require_control()
        _require_the_repository(request.repository_name)
        await self._control.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def _infer(self, request: pb.ModelInferRequest, call: Call, response: pb.ModelInferResponse) -> None:
        """Fills in the answer to one request."""
        if "sequence_id" in request.parameters:
            raise Unsupported("there are no sequences here: every request stands for itself")
        pixels, crops = tensors.images(request)
        wanted = tensors.wanted(request)
        raw = bool(request.raw_input_contents)
        model, version, key = request.model_name, request.model_version, _key(request)
        timeout_seconds, target = _timeout_seconds(request), self._decider.target(_target_error_rate(request))
        response.id = request.id
        del request  # the message holds a second copy of the images, which would wait with them
        reading = await self._recognizer.read(
            pixels,
            call,
            crops=crops,
            each_by_itself="decisions" in wanted,  # who does not ask for them would not see which could not be read
            model=model,
            version=version,
            key=key,
            timeout_seconds=timeout_seconds,
        )
        response.model_name = reading.loaded.name
        response.model_version = reading.loaded.version
        outputs: dict[str, tensors.Values] = {"logits": reading.logits, "probabilities": reading.probabilities}
        if "decisions" in wanted:
            decided = await self._decider.digits(
                reading, target, call.deadline, audit=False
            )  # this protocol has no word for it
            outputs["decisions"] = np.frombuffer(decided.decisions, np.uint8)
            response.parameters["recognition_id"].string_param = decided.recognition_id
            response.parameters["captured"].bool_param = decided.captured
            if decided.threshold:
                response.parameters["threshold"].double_param = decided.threshold.confidence
                response.parameters["target_error_rate"].double_param = decided.threshold.target_error_rate
        tensors.answer(response, ((name, outputs[name]) for name in wanted), raw=raw)

    def _answering(self, name: str, version: str) -> list[Loaded]:
        """The versions of a model that answer, at least one, stable first; where one is named, that one.

        Raises:
            UnknownModel: there is no such model, or the version named does not answer.
            ModelNotReady: no version of it is loaded.
        """
        routed = self._catalog.route(name, version)
        return [routed] if version else self._catalog.answering(name)

    def _count(self, versions: Sequence[tuple[str, str]]) -> pb.ModelStatisticsResponse:
        """Statistics by model and version. Not on the event loop: the metrics of other workers are read from files."""
        response = pb.ModelStatisticsResponse()
        for (model, version), done in self._metrics.statistics(versions).items():
            # What is left of success after queue, so that they add up to the nanosecond.
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
            raise PermissionDenied(
                "models are neither loaded nor unloaded by callers here: the server needs --model-control"
            )


@functools.cache
def _version() -> str:
    return metadata.version(_DISTRIBUTION)


def _require_the_repository(name: str) -> None:
    if name:
        raise Unsupported(f"there is no repository {tensors.shown(name)}: this server has one, without a name")


def _timeout_seconds(request: pb.ModelInferRequest) -> float:
    """What the parameter `timeout` says; 0 when it asks for none."""
    if "timeout" not in request.parameters:
        return 0.0
    value = request.parameters["timeout"]
    kind = value.WhichOneof("parameter_choice")
    microseconds = value.int64_param if kind == "int64_param" else value.uint64_param
    if kind not in ("int64_param", "uint64_param") or microseconds < 0:
        raise InvalidRequest("parameter timeout is no number of microseconds, expected one, 0 or more, as int64_param")
    return microseconds / 1e6


def _key(request: pb.ModelInferRequest) -> str:
    """What the parameter `key` says; empty when there is none."""
    if "key" not in request.parameters:
        return ""
    value = request.parameters["key"]
    if value.WhichOneof("parameter_choice") != "string_param":
        raise InvalidRequest("parameter key is no string, expected one, as string_param")
    return value.string_param


def _target_error_rate(request: pb.ModelInferRequest) -> float:
    """What the parameter `target_error_rate` says; 0 when there is none."""
    if "target_error_rate" not in request.parameters:
        return 0.0
    value = request.parameters["target_error_rate"]
    if value.WhichOneof("parameter_choice") != "double_param":
        raise InvalidRequest("parameter target_error_rate is no number, expected a share below 1, as double_param")
    return value.double_param


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
