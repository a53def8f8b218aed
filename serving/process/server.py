"""Wires the path from port to model, and takes it down without losing a call."""

import asyncio
import logging
import time
from collections.abc import Coroutine

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.answers.lexicon import read_lexicons
from serving.answers.recognition_id import RecognitionIds
from serving.api import digits, open_inference
from serving.api.digits import DigitService
from serving.api.open_inference import OpenInference
from serving.contract import IMAGE_BYTES
from serving.feedback.capture import Capture, open_store
from serving.feedback.truth import Truths
from serving.inference.model import Model
from serving.ports import PortTaken, address
from serving.process.heartbeat import Heartbeat
from serving.process.startup_log import Described
from serving.process.worker_channel import Control
from serving.recognition.policy import Policy
from serving.recognition.recognizer import Recognizer
from serving.repository.loader import OpenModel
from serving.repository.model_control import ModelControl
from serving.repository.repository import Repository
from serving.security.signing_keys import read_signing_keys
from serving.security.tls import TLS
from serving.security.tokens import TokenAuthenticator
from serving.settings import Settings
from serving.telemetry import tracing
from serving.telemetry.metrics import Metrics
from serving.transport.grpc_front import GrpcFront
from serving.transport.grpc_options import LEAST_MESSAGE_BYTES, connection_options, reflection_handler
from serving.transport.health import Health
from serving.web.operations import HttpServer

log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


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
        self._access = TokenAuthenticator(settings.tokens, self.metrics, limits) if settings.tokens else None
        self.repository = Repository(settings, self.metrics, self._set_ready, open_model)
        self._draining = False
        self._background: set[asyncio.Task[None]] = set()
        self._edge = GrpcFront(
            self.metrics,
            self._access,
            self._tracing,
            max_streams=settings.max_streams,
            max_in_flight_per_stream=settings.max_in_flight_per_stream,
        )
        models: ModelControl = control or self.repository  # what carries out a Load or Unload: all workers, or this alone
        self._recognizer = Recognizer(
            self.repository.catalog, self.metrics, settings.max_images_per_request, settings.max_queue_size
        )
        self._capture = Capture(open_store(settings), self.metrics, settings.max_queue_size) if settings.capture else None
        lexicons = read_lexicons(settings.lexicons) if settings.lexicons else {}
        ids = RecognitionIds(read_signing_keys(settings.recognition_key) if settings.recognition_key else ())
        targets = (settings.target_error_rate, settings.field_target_error_rate)
        decider = Policy(*targets, lexicons, ids, settings.audit_rate, self._capture)
        truths = Truths(ids, self.repository.catalog.knows, self.metrics, self._capture)
        digit_service = DigitService(self._recognizer, decider, truths, settings.max_images_per_request)
        tensors = OpenInference(
            settings, self.repository.catalog, models, self._recognizer, decider, self.metrics, self.unready
        )
        self._grpc = grpc.aio.server(
            options=[
                # A pixel is a byte, but in a typed tensor of the open inference protocol it takes up to two. And there must
                # be room for a crop.
                (
                    "grpc.max_receive_message_length",
                    max(settings.max_images_per_request * IMAGE_BYTES * 2 + 1024, LEAST_MESSAGE_BYTES),
                ),
                # Workers share their port; otherwise a second service on it would take half of the connections.
                ("grpc.so_reuseport", int(control is not None)),
                # When calls come faster than the event loop takes them, gRPC holds them, and ends those above the second of
                # these limits as CANCELLED; above the first, some by chance: none where both are the same.
                ("grpc.server.max_pending_requests", settings.max_pending_calls),
                ("grpc.server.max_pending_requests_hard_limit", settings.max_pending_calls),
                *connection_options(settings),
            ]
        )
        self._edge.add(digits.NAME, digit_service.methods())
        self._edge.add(open_inference.NAME, tensors.methods())
        if settings.reflection:
            names = (digits.NAME, open_inference.NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            handler = reflection_handler(names)
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
            self._http = HttpServer(host, metrics_port, self.metrics.registry, lost=Heartbeat().lost, unready=self.unready)
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
        return "" if self.repository.catalog.answering() else f"model {self.repository.catalog.default!r} is not loaded"

    def describe(self) -> Described:
        """What answers when a request names no model, and how it is run."""
        how = f"on {self._settings.provider}, {self._settings.instances} at a time"
        if not self.repository.catalog.answering():
            return Described(f"no model {how}", "")
        model = self.repository.catalog.route().model
        accuracy = f"{model.test_accuracy:.4f} on the MNIST test images"
        return Described(f"model {model.version} ({model.recipe}, {accuracy}) {how}", model.version)

    def _set_ready(self, ready: bool) -> None:
        self._tell_readiness()

    def _tell_readiness(self) -> None:
        unready = self.unready()
        if self._control:
            self._control.tell_readiness(unready)
        for name in (digits.NAME, open_inference.NAME):
            self._health.set(name, NOT_SERVING if unready else SERVING)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
