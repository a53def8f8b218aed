"""Wires the path from port to model, and takes it down without losing a call."""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving import digit_service, open_inference, tracing
from serving.access import Access
from serving.announcement import Described, announce, log_stopped
from serving.capture import Capture, open_store
from serving.contract import IMAGE_BYTES
from serving.control import Control, Models
from serving.decider import Decider
from serving.digit_service import DigitService
from serving.edge import Edge, Handler
from serving.health import Health
from serving.http import HttpServer
from serving.lexicon import load_all
from serving.logs import log_event
from serving.metrics import Metrics
from serving.model import Model
from serving.open_inference import OpenInference
from serving.ports import PortTaken, address
from serving.pulse import Pulse
from serving.recognition_id import RecognitionIds
from serving.recognizer import Recognizer
from serving.repository import OpenModel, Repository
from serving.settings import Settings
from serving.stopping import Stop, stops_by_signal
from serving.tls import TLS
from serving.truths import Truths

log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

_COLLECTED_AFTER = 20_000  # new objects, some megabytes; 700 otherwise
_LEAST_MESSAGE_BYTES = 4 << 20  # gRPC's own limit

# How long new calls are refused before the port is closed, so that callers who go on calling hear of it.
_REFUSING_SECONDS = 0.2

# How long gRPC takes to tell its connections that no more calls are taken on them.
_CLOSING_SECONDS = 0.05

# How long the last answers may take to be written; health watches, which never end, are cut off after it.
_WRITING_SECONDS = 0.5

# How long the last captured images may take to be stored, even where calls in flight have used up their time.
_STORING_SECONDS = 1.0

# How long the last spans may take to reach their collector.
_FLUSHING_SECONDS = 1.0

# How often clients may ask for a sign of life. gRPC's own limit is once in five minutes, and less patient ones are cut off.
_PING_INTERVAL_SECONDS = 10


class Server:
    """One worker: the whole path, from the ports down.

    Health, by service name: "" says that the process lives, "digits.v1.DigitService" that it wants traffic, and so does
    "inference.GRPCInferenceService": while the default model answers. While draining only readiness changes, so that
    Kubernetes takes the pod out of the Service and does not restart it.

    Attributes:
        metrics: what it counts.
        repository: the models it serves.
        grpc_port: the port it listens on once it was started, also when the settings left the choice to the system.
        metrics_port: likewise, for HTTP; a worker has none.
    """

    def __init__(self, settings: Settings, open_model: OpenModel = Model, control: Control | None = None):
        """Puts the path together, on the running event loop; nothing is loaded and nothing listens yet.

        Args:
            settings: how to serve.
            open_model: loads and checks one version of a model.
            control: the line to the supervisor, which answers HTTP for all workers; None when this serves alone.

        Raises:
            CredentialsError: a file of tokens, certificates or keys can't be used.
            TracingError: traces are asked for that can't be had.
            LexiconError: a lexicon can't be used.
            CaptureError: images can't be captured where they are to be.
        """
        self._tracing = tracing.start()
        self._settings = settings
        self._control = control
        self.metrics = Metrics(control.directory if control else None)
        self._tls = None
        if settings.tls_certificate and settings.tls_key:
            self._tls = TLS(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, self.metrics)
        limits = control.directory / "rate-limits" if control else None
        self._access = Access(settings.tokens, self.metrics, limits) if settings.tokens else None
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
        models: Models = control or self.repository  # what carries out a Load or Unload: all workers, or this alone
        self._recognizer = Recognizer(
            self.repository, self.metrics, settings.max_images_per_request, settings.max_queue_size
        )
        self._capture = Capture(open_store(settings), self.metrics, settings.max_queue_size) if settings.capture else None
        lexicons = load_all(settings.lexicons) if settings.lexicons else {}
        ids = RecognitionIds.from_file(settings.recognition_key) if settings.recognition_key else RecognitionIds()
        targets = (settings.target_error_rate, settings.field_target_error_rate)
        decider = Decider(*targets, lexicons, ids, settings.audit_rate, self._capture)
        truths = Truths(ids, self.repository.knows, self.metrics, self._capture)
        digits = DigitService(self._recognizer, decider, truths, settings.max_images_per_request)
        tensors = OpenInference(settings, self.repository, models, self._recognizer, decider, self.metrics, self.unready)
        self._grpc = grpc.aio.server(
            options=[
                # A pixel is a byte, but in a typed tensor of the open inference protocol it takes up to two. And there must
                # be room for a crop.
                (
                    "grpc.max_receive_message_length",
                    max(settings.max_images_per_request * IMAGE_BYTES * 2 + 1024, _LEAST_MESSAGE_BYTES),
                ),
                # Workers share their port; otherwise a second service on it would take half of the connections.
                ("grpc.so_reuseport", int(control is not None)),
                # When calls come faster than the event loop takes them, gRPC holds them, and ends those above the second of
                # these limits as CANCELLED; above the first, some by chance: none where both are the same.
                ("grpc.server.max_pending_requests", settings.max_pending_calls),
                ("grpc.server.max_pending_requests_hard_limit", settings.max_pending_calls),
                *_connection_options(settings),
            ]
        )
        self._edge.add(digit_service.NAME, digits.methods())
        self._edge.add(open_inference.NAME, tensors.methods())
        if settings.reflection:
            names = (digit_service.NAME, open_inference.NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            handler = _reflection(names)
            self._edge.add_handlers(reflection.SERVICE_NAME, "ServerReflectionInfo", None, lambda _: handler)
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)  # first: load balancers have no tokens
        self._grpc.add_generic_rpc_handlers((self._edge,))

    async def start(self) -> None:
        """Loads the models, listens on both ports and answers.

        Raises:
            RepositoryError: the default model can't be served.
            PortTaken: a port can't be listened on. The server is of no further use then.
            CaptureError: images can't be captured in a database on this machine; likewise.
        """
        await self.repository.start(self._control.unloaded if self._control else ())
        host, grpc_port, metrics_port = self._settings.host, self._settings.grpc_port, self._settings.metrics_port
        try:
            if self._tls:
                self.grpc_port = self._grpc.add_secure_port(address(host, grpc_port), self._tls.server_credentials())
            else:
                self.grpc_port = self._grpc.add_insecure_port(address(host, grpc_port))
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {address(host, grpc_port)} for gRPC; is it taken?") from error
        self._http = None
        if not self._control:
            self._http = HttpServer(host, metrics_port, self.metrics.registry, lost=Pulse().lost, unready=self.unready)
        self.metrics_port = self._http.port if self._http else 0
        if self._capture:
            await self._capture.start()
        await self._grpc.start()
        self._health.set("", SERVING)
        self._tell_readiness()
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
        self._tell_readiness()
        await asyncio.sleep(drain_seconds)
        end = time.monotonic() + grace_seconds
        for task in self._background:
            task.cancel()
        self._edge.stop_streams()
        await self._recognizer.close(grace_seconds / 2)  # what is framed then has the other half to be read in
        stuck = await self.repository.close(max(0.0, end - time.monotonic()))
        # From here gRPC would end a call that is just coming in as CANCELLED, which callers do not try again elsewhere.
        self._edge.hold_refusals()
        await asyncio.sleep(min(_REFUSING_SECONDS, grace_seconds))
        closing = asyncio.create_task(self._grpc.stop(min(_WRITING_SECONDS, max(0.0, end - time.monotonic()))))
        await asyncio.sleep(_CLOSING_SECONDS)
        self._edge.closed()
        await closing
        if self._capture:
            await self._capture.close(max(_STORING_SECONDS, end - time.monotonic()))
        if self._access:
            self._access.close()
        if self._http:
            self._http.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop, _FLUSHING_SECONDS)
        return stuck

    def unready(self) -> str:
        """Why it wants no traffic; nothing when it does."""
        if self._draining:
            return "draining"
        return "" if self.repository.answering() else f"model {self.repository.default!r} is not loaded"

    def describe(self) -> Described:
        """What answers when a request names no model, and how it is run."""
        how = f"on {self._settings.provider}, {self._settings.instances} at a time"
        if not self.repository.answering():
            return Described(f"no model {how}", "")
        model = self.repository.route().model
        accuracy = f"{model.test_accuracy:.4f} on the MNIST test images"
        return Described(f"model {model.version} ({model.recipe}, {accuracy}) {how}", model.version)

    def _set_ready(self, ready: bool) -> None:
        self._tell_readiness()

    def _tell_readiness(self) -> None:
        unready = self.unready()
        if self._control:
            self._control.tell_readiness(unready)
        for name in (digit_service.NAME, open_inference.NAME):
            self._health.set(name, NOT_SERVING if unready else SERVING)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def serve(settings: Settings) -> None:
    """Serves in this process alone until SIGTERM, then drains.

    Raises:
        CannotStart: as the Server that is made and started here does.
    """
    stops = stops_by_signal(settings)
    server = Server(settings)
    collect_less()
    await server.start()
    announce(settings, server.describe(), server.grpc_port, server.metrics_port)
    stuck = await run(server, stops)
    log_stopped(server.metrics.registry)
    if stuck:
        leave()


async def run(server: Server, stops: "asyncio.Queue[Stop]") -> int:
    """Lets a server that was started run until it is told to stop; a later order to stop cuts the first short.

    Returns:
        Runs of the model that have not ended: `leave` them.
    """
    stopping: asyncio.Task[int] | None = None
    ordered = asyncio.create_task(stops.get())
    while stopping is None or not stopping.done():
        await asyncio.wait({ordered, *([stopping] if stopping else [])}, return_when=asyncio.FIRST_COMPLETED)
        if ordered.done():
            if stopping and not stopping.done():
                stopping.cancel()
                await asyncio.gather(stopping, return_exceptions=True)
            stop = ordered.result()
            stopping = asyncio.create_task(server.stop(stop.drain_seconds, stop.grace_seconds))
            ordered = asyncio.create_task(stops.get())
    ordered.cancel()
    stuck = stopping.result()
    if stuck:
        log_event(log, logging.ERROR, "runs_left", f"{stuck} runs of the model have not ended; leaving them", runs=stuck)
    return stuck


def collect_less() -> None:
    """Has this process's garbage collector leave alone what was imported, and look less often: it took a tenth of a call."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER)


def leave() -> NoReturn:
    """Ends this process, with status 1, without waiting for runs of the model that have not ended."""
    logging.shutdown()
    os._exit(1)


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


def _reflection(services: Sequence[str]) -> "Handler[Any, Any]":
    """Says what these services are; to any client, as all of it is public."""
    return grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(services).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
