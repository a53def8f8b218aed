"""Wires the path from port to model, and takes it down without losing a call."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import start_http_server

from serving import digit_service, open_inference, tracing
from serving.access import Access
from serving.contract import IMAGE_BYTES
from serving.digit_service import DigitService
from serving.edge import Edge, Method
from serving.logs import log_event
from serving.metrics import Metrics
from serving.model import Model
from serving.open_inference import OpenInference
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as oip
from serving.recognizer import Recognizer
from serving.repository import OpenModel, Repository
from serving.settings import Settings
from serving.tls import TLS

log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# How long new calls are refused before the port is closed, so that callers who go on calling hear of it.
_REFUSING_SECONDS = 0.2

# How long the last answers may take to be written; health watches, which never end, are cut off after it.
_WRITING_SECONDS = 0.5

# How long the last spans may take to reach their collector.
_FLUSHING_SECONDS = 1.0

# What SIGINT leaves of the grace: enough for the runs of the model that are under way.
_INTERRUPTED_GRACE_SECONDS = 0.5


# How often clients may ask for a sign of life. gRPC's own limit is once in five minutes, and less patient ones are cut off.
_PING_INTERVAL_SECONDS = 10


class PortTaken(Exception):
    """A port that the server was told to listen on can't be had."""


class Server:
    """One worker: the whole path, from the ports down.

    Health, by service name: "" says that the process lives, "digits.v1.DigitService" that it wants traffic, and so does
    "inference.GRPCInferenceService": while the default model answers. While draining only readiness changes, so that
    Kubernetes takes the pod out of the Service and does not restart it.

    Attributes:
        metrics: what it counts.
        repository: the models it serves.
        grpc_port: the port it listens on once it was started, also when the settings left the choice to the system.
        metrics_port: likewise, for Prometheus.
    """

    def __init__(self, settings: Settings, open_model: OpenModel = Model):
        """Puts the path together, on the running event loop; nothing is loaded and nothing listens yet.

        Raises:
            CredentialsError: a file of tokens, certificates or keys can't be used.
            TracingError: traces are asked for that can't be had.
        """
        self._tracing = tracing.start()
        self._settings = settings
        self.metrics = Metrics()
        self._tls = None
        if settings.tls_certificate and settings.tls_key:
            self._tls = TLS(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, self.metrics)
        self._access = Access(settings.tokens, self.metrics, _shared("rate-limits")) if settings.tokens else None
        self.repository = Repository(settings, self.metrics, self._set_ready, open_model)
        self._draining = False
        self._background: set[asyncio.Task[None]] = set()
        self._edge = Edge(
            self.metrics,
            self._access,
            self._tracing,
            max_streams=settings.max_streams,
            max_in_flight_per_stream=settings.max_in_flight_per_stream,
        )
        recognizer = Recognizer(self.repository, settings.max_images_per_request)
        digits = DigitService(recognizer)
        tensors = OpenInference(settings, self.repository, recognizer, self.metrics, self._is_ready)
        self._grpc = grpc.aio.server(
            options=[
                # A pixel is a byte, but in a typed tensor of the open inference protocol it takes up to two.
                ("grpc.max_receive_message_length", settings.max_images_per_request * IMAGE_BYTES * 2 + 1024),
                ("grpc.so_reuseport", 0),  # else a second server on the port would take half of its connections
                # When calls come faster than the event loop takes them, gRPC holds them; past these limits it ends them as
                # CANCELLED, uncounted, by chance at first (from 1,000 by default) and then all (from 3,000).
                ("grpc.server.max_pending_requests", settings.max_queue_size),
                ("grpc.server.max_pending_requests_hard_limit", settings.max_queue_size),
                *_connection_options(settings),
            ]
        )
        methods = {
            "Recognize": self._edge.unary("Recognize", pb.RecognizeRequest, digits.recognize, "recognize"),
            "RecognizeBatch": self._edge.unary(
                "RecognizeBatch", pb.RecognizeBatchRequest, digits.recognize_batch, "recognize"
            ),
            "RecognizeStream": self._edge.stream(
                "RecognizeStream",
                pb.RecognizeStreamRequest,
                digits.recognize_in_stream,
                digits.refuse_in_stream,
                "recognize",
                ordered=False,
            ),
        }
        self._edge.add(digit_service.NAME, methods)
        self._edge.add(open_inference.NAME, self._open_inference(tensors))
        if settings.reflection:
            names = (digit_service.NAME, open_inference.NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            self._edge.add(reflection.SERVICE_NAME, {"ServerReflectionInfo": _reflection(names)})
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)  # first: load balancers have no tokens
        self._grpc.add_generic_rpc_handlers((self._edge,))

    async def start(self) -> None:
        """Loads the models, listens on both ports and answers.

        Raises:
            RepositoryError: the default model can't be served.
            PortTaken: a port can't be listened on. The server is of no further use then.
        """
        await self.repository.start()
        host, grpc_port, metrics_port = self._settings.host, self._settings.grpc_port, self._settings.metrics_port
        try:
            if self._tls:
                self.grpc_port = self._grpc.add_secure_port(_address(host, grpc_port), self._tls.server_credentials())
            else:
                self.grpc_port = self._grpc.add_insecure_port(_address(host, grpc_port))
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {_address(host, grpc_port)} for gRPC; is it taken?") from error
        try:
            self._http, _ = start_http_server(metrics_port, host, self.metrics.registry)
        except OSError as error:
            reason = f"cannot listen on {_address(host, metrics_port)} for metrics: {error.strerror}"
            raise PortTaken(reason) from error
        self.metrics_port = self._http.server_port
        await self._grpc.start()
        await self._health.set("", SERVING)
        await self._tell_health(SERVING)
        self._in_background(self.repository.watch())
        if self._tls:
            self._in_background(self._tls.watch(self._settings.poll_seconds))
        if self._access:
            self._in_background(self._access.watch(self._settings.poll_seconds))

    async def stop(self, drain_seconds: float, grace_seconds: float) -> int:
        """Leaves without losing a call.

        First it only says that it wants no more traffic, and goes on answering for `drain_seconds`. Then new calls are told
        UNAVAILABLE while those in flight are finished; what takes longer than `grace_seconds` is cut off.

        Returns:
            Runs of the model that have not ended, whose threads live on.
        """
        self._draining = True
        await self._tell_health(NOT_SERVING)
        await asyncio.sleep(drain_seconds)
        end = time.monotonic() + grace_seconds
        for task in self._background:
            task.cancel()
        self._edge.stop_streams()
        stuck = await self.repository.close(grace_seconds)
        # From here gRPC would end a call that is just coming in as CANCELLED, which callers do not try again elsewhere.
        await asyncio.sleep(min(_REFUSING_SECONDS, grace_seconds))
        await self._grpc.stop(min(_WRITING_SECONDS, max(0.0, end - time.monotonic())))
        if self._access:
            self._access.close()
        self._http.shutdown()
        self._http.server_close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop, _FLUSHING_SECONDS)
        return stuck

    def _open_inference(self, tensors: OpenInference) -> dict[str, Method]:
        """Its methods; what only looks is for any client."""
        unary = self._edge.unary
        return {
            "ServerLive": unary("ServerLive", oip.ServerLiveRequest, tensors.server_live, None),
            "ServerReady": unary("ServerReady", oip.ServerReadyRequest, tensors.server_ready, None),
            "ModelReady": unary("ModelReady", oip.ModelReadyRequest, tensors.model_ready, None),
            "ServerMetadata": unary("ServerMetadata", oip.ServerMetadataRequest, tensors.server_metadata, None),
            "ModelMetadata": unary("ModelMetadata", oip.ModelMetadataRequest, tensors.model_metadata, None),
            "ModelInfer": unary("ModelInfer", oip.ModelInferRequest, tensors.model_infer, "recognize"),
            "ModelStreamInfer": self._edge.stream(
                "ModelStreamInfer",
                oip.ModelInferRequest,
                tensors.model_stream_infer,
                tensors.refuse_in_stream,
                "recognize",
                ordered=True,
            ),
            "ModelConfig": unary("ModelConfig", oip.ModelConfigRequest, tensors.model_config, None),
            "ModelStatistics": unary("ModelStatistics", oip.ModelStatisticsRequest, tensors.model_statistics, None),
            "RepositoryIndex": unary("RepositoryIndex", oip.RepositoryIndexRequest, tensors.repository_index, None),
            "RepositoryModelLoad": unary(
                "RepositoryModelLoad", oip.RepositoryModelLoadRequest, tensors.repository_model_load, "admin"
            ),
            "RepositoryModelUnload": unary(
                "RepositoryModelUnload", oip.RepositoryModelUnloadRequest, tensors.repository_model_unload, "admin"
            ),
        }

    def _is_ready(self) -> bool:
        return not self._draining and bool(self.repository.answering())

    def _set_ready(self, ready: bool) -> None:
        if not self._draining:
            self._in_background(self._tell_health(SERVING if ready else NOT_SERVING))

    async def _tell_health(self, status: int) -> None:
        for name in (digit_service.NAME, open_inference.NAME):
            await self._health.set(name, status)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM, then drains. SIGINT (Ctrl-C) skips the drain, and while stopping it cuts that short.

    Raises:
        CredentialsError: a file of tokens, certificates or keys can't be used.
        RepositoryError: there is no model to serve, or none that can be served.
        PortTaken: a port can't be listened on.
        TracingError: traces are asked for that can't be had.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    server = Server(settings)
    await server.start()
    _announce(server, settings)

    received = await signals.get()
    drain = settings.drain_seconds if received is signal.SIGTERM else 0.0
    log_event(
        log,
        logging.INFO,
        "draining",
        f"{received.name}: draining for {drain:g} s, then up to {settings.grace_seconds:g} s for calls in flight",
        signal=received.name,
        drain_seconds=drain,
        grace_seconds=settings.grace_seconds,
    )
    stopping = asyncio.create_task(server.stop(drain, settings.grace_seconds))
    interrupted = asyncio.create_task(_interrupt(signals))
    await asyncio.wait((stopping, interrupted), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        log_event(log, logging.INFO, "interrupted", "SIGINT: stopping now", signal="SIGINT")
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        stopping = asyncio.create_task(server.stop(0, _INTERRUPTED_GRACE_SECONDS))
    stuck = await stopping
    interrupted.cancel()
    calls = server.metrics.calls_by_code()
    log_event(log, logging.INFO, "stopped", f"stopped; calls ended, by status code: {calls}", calls=calls)
    if stuck:
        log_event(log, logging.ERROR, "runs_left", f"{stuck} runs of the model have not ended; leaving them", runs=stuck)
        logging.shutdown()
        os._exit(1)  # an ordinary exit would wait for their threads


async def _interrupt(signals: asyncio.Queue[signal.Signals]) -> None:
    """Ends at the next SIGINT. SIGTERM may well come twice, as `make` and a process group pass it on."""
    while await signals.get() is not signal.SIGINT:
        pass


def _announce(server: Server, settings: Settings) -> None:
    model = server.repository.route().model
    address = _address(settings.host, server.grpc_port)
    metrics = _address(settings.host, server.metrics_port)
    log_event(
        log,
        logging.INFO,
        "started",
        f"model {model.version} ({model.recipe}, {model.test_accuracy:.4f} on the MNIST test images) on "
        f"{settings.provider}, {settings.instances} at a time, {address} for gRPC, http://{metrics}/metrics",
        grpc_address=address,
        metrics_address=metrics,
        model=settings.default_model,
        version=model.version,
        provider=settings.provider,
        instances=settings.instances,
    )
    if settings.log_format == "text":
        command = _from_here(Path(sys.executable).with_name("digits"))
        sample = _from_here(Path(__file__).parent / "samples" / "7.png")
        log.info("send it a first digit: %s recognize --address %s %s", command, address, sample)


def _connection_options(settings: Settings) -> list[tuple[str, int]]:
    """How long connections live, as gRPC is told of it."""
    silence = round(settings.keepalive_seconds * 1000)
    options = [
        ("grpc.keepalive_time_ms", silence),
        ("grpc.keepalive_timeout_ms", silence),
        ("grpc.http2.ping_timeout_ms", silence),  # a minute otherwise, and the longer of the two is what counts
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_SECONDS * 1000),
    ]
    if settings.max_connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_seconds * 1000)))
    return options


def _reflection(services: Sequence[str]) -> Method:
    """Says what these services are; to any client, as all of it is public."""
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(services).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return Method("ServerReflectionInfo", None, lambda _: handler)


def _shared(name: str) -> Path | None:
    """A file in the directory that workers which serve together share; None where one serves alone."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(directory) / name if directory else None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _from_here(path: Path) -> Path:
    """The path as one would type it: from the working directory where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
