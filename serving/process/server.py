"""Wires the path from port to model, and takes it down without losing a call."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine

from grpc_health.v1 import health_pb2

from serving.answers.lexicon import read_lexicons
from serving.answers.recognition_id import RecognitionIds
from serving.api import digits, open_inference
from serving.api.digits import DigitService
from serving.api.dispatch import Dispatcher
from serving.api.open_inference import OpenInference
from serving.disk_thread import on_disk_thread
from serving.feedback.capture import Capture, open_store
from serving.feedback.truth import TruthCounter
from serving.process.heartbeat import Heartbeat
from serving.process.startup_log import ModelDescription
from serving.process.supervisor_link import SupervisorLink
from serving.recognition.policy import Policy
from serving.recognition.recognizer import Recognizer
from serving.repository.catalog import ServedModel
from serving.repository.model_control import ModelControl
from serving.repository.quarantine.quarantine import OpenVersion
from serving.repository.repository import Repository
from serving.repository.skipped import SkippedDirectories
from serving.security.signing_keys import read_signing_keys
from serving.security.tls import TLS
from serving.security.tokens import TokenAuthenticator
from serving.settings import Settings
from serving.telemetry import tracing
from serving.telemetry.logs import count_dropped_lines, log_event
from serving.telemetry.loop_watchdog import LogHeld, LoopWatchdog
from serving.telemetry.metrics import Metrics
from serving.telemetry.retired_series import RetiredSeries
from serving.transport import health, reflection
from serving.transport.grpc_front import GrpcFront
from serving.transport.health import Health
from serving.transport.http2_front.front import Http2Front
from serving.transport.routes import Routes
from serving.transport.stream import Streams
from serving.web.operations import HttpServer

log = logging.getLogger(__name__)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# Least time for the last captured images to be stored, even when the calls in flight have used up the grace.
_STORING_SECONDS = 1.0

# Time for the last spans to reach their collector.
_FLUSHING_SECONDS = 1.0


class Server:
    """One worker: the whole path from the ports to the models.

    Health by service name: "" is SERVING while the process lives. "digits.v1.DigitService" and
    "inference.GRPCInferenceService" are SERVING while the default model answers and the server is not draining. Draining
    changes only readiness, so that Kubernetes takes the pod out of the Service and does not restart it.

    Attributes:
        metrics: the metrics of this worker.
        repository: the models.
        dispatcher: answers the requests of every front.
        grpc_port: the port of gRPC once the server has started, also when the system chose it.
        metrics_port: the port of HTTP once the server has started; 0 in one of several workers.
    """

    def __init__(self, settings: Settings, open_version: OpenVersion | None = None, control: SupervisorLink | None = None):
        """Puts the path together on the running event loop. Nothing is loaded, and nothing listens yet.

        Args:
            settings: the operator's settings.
            open_version: opens and checks one version of a model; by default in quarantine.
            control: the link to the supervisor, which answers HTTP for all workers; None without other workers.

        Raises:
            CredentialsError: a file of tokens, certificates or keys is unusable.
            TracingError: the environment asks for an impossible kind of tracing.
            LexiconError: a lexicon is unusable.
            CaptureError: the capture database is unusable.
        """
        self._settings = settings
        self._control = control
        self._draining = False
        self._background: set[asyncio.Task[None]] = set()
        self._watchdog = contextlib.ExitStack()
        self._tracing = tracing.start()
        self.metrics = Metrics(control.series if control else None)
        count_dropped_lines(self.metrics.log_lines_dropped.inc)

        self._tls = None
        if settings.tls_certificate and settings.tls_key:
            self._tls = TLS(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, self.metrics)
        limits = control.series.directory / "rate-limits" if control else None
        self._authenticator = TokenAuthenticator(settings.tokens, self.metrics, limits) if settings.tokens else None

        self.repository = Repository(settings, self.metrics, self._report_readiness, open_version)
        self._capture = Capture(open_store(settings), self.metrics, settings.max_queue_size) if settings.capture else None
        keys = read_signing_keys(settings.recognition_key) if settings.recognition_key else ()
        ids = RecognitionIds(keys)
        policy = Policy(
            settings.target_error_rate,
            settings.field_target_error_rate,
            read_lexicons(settings.lexicons) if settings.lexicons else {},
            ids,
            settings.audit_rate,
            self._capture,
        )
        self._recognizer = Recognizer(
            self.repository.catalog, policy, self.metrics, settings.max_images_per_request, settings.max_queue_size
        )

        truths = TruthCounter(ids, self.repository.catalog.knows, self.metrics, self._capture)
        digit_service = DigitService(self._recognizer, truths, settings.max_images_per_request)
        models: ModelControl = control or self.repository  # loads and unloads: in all workers, or in this process alone
        inference = OpenInference(settings, self.repository.catalog, models, self._recognizer, self.metrics, self.unready)
        self.dispatcher = dispatcher = Dispatcher(self.metrics, self._authenticator, self._tracing)
        dispatcher.add([*digit_service.methods(), *inference.methods()])

        self._streams = Streams(
            dispatcher,
            self.metrics,
            max_streams=settings.max_streams,
            max_in_flight=settings.max_in_flight_per_stream,
            max_bytes=settings.max_answer_buffer_bytes,
        )
        self._health = Health()
        routes = Routes(dispatcher, self._streams)
        routes.add(self._health.handlers(), public=True)  # load balancers have no tokens
        if settings.reflection:
            routes.add(reflection.handlers((digits.NAME, open_inference.NAME, health.NAME)))
        shares_port = control is not None
        self._front = (
            Http2Front(settings, routes, self._tls, self.metrics, shares_port=shares_port)
            if settings.front == "http2"
            else GrpcFront(settings, routes, self._tls, shares_port=shares_port)
        )

    async def start(self) -> None:
        """Loads the models, listens on both ports and answers.

        Raises:
            RepositoryError: no version of the default model can be served.
            PortTaken: a port is taken. The server must not be used afterwards.
            CaptureError: a capture database on this machine is unusable. The server must not be used afterwards.
        """
        await self.repository.start(self._control.unloaded if self._control else ())
        host, grpc_port, metrics_port = self._settings.host, self._settings.grpc_port, self._settings.metrics_port
        self.grpc_port = self._front.listen(host, grpc_port)
        self._http = None
        if not self._control:
            self._http = HttpServer(host, metrics_port, self.metrics.registry, lost=Heartbeat().lost, unready=self.unready)
        self.metrics_port = self._http.port if self._http else 0
        if self._capture:
            await self._capture.start()
        await self._front.start()
        if self._settings.log_level == "debug":
            self._watchdog.enter_context(LoopWatchdog(LogHeld()))
        self._health.set("", SERVING)
        self._report_readiness()
        self._in_background(self.repository.watch())
        self._in_background(self._expire_series())
        if not self._control or self._control.series.worker == 0:  # one of the workers looks for all
            self._in_background(self._log_skipped())
        if self._tls:
            self._in_background(self._tls.watch(self._settings.poll_seconds))
            self._in_background(self._watch_expiry(self._tls))
        if self._authenticator:
            self._in_background(self._authenticator.watch(self._settings.poll_seconds))

    async def stop(self, drain_seconds: float, grace_seconds: float) -> int:
        """Drains and stops without losing a call.

        For `drain_seconds` the server reports that it is not ready, and still answers. Then it refuses new calls with
        UNAVAILABLE and finishes the calls in flight; after `grace_seconds` it cuts them off.

        Returns:
            Runs of a model that have not ended, and whose threads live on.
        """
        self._draining = True
        self._report_readiness()
        await asyncio.sleep(drain_seconds)
        end = time.monotonic() + grace_seconds
        for task in self._background:
            task.cancel()
        self._streams.stop()
        stuck = 0

        async def finish() -> None:
            nonlocal stuck
            # In the order of their work: long messages are parsed, then crops are framed, then images are read.
            await self.dispatcher.side_thread.drain(grace_seconds / 4)
            await self._recognizer.close(grace_seconds / 4)
            stuck = await self.repository.close(max(0.0, end - time.monotonic()))

        await self._front.stop(grace_seconds, finish)
        self._watchdog.close()
        self.dispatcher.side_thread.close()
        if self._capture:
            await self._capture.close(max(_STORING_SECONDS, end - time.monotonic()))
        if self._authenticator:
            self._authenticator.close()
        if self._http:
            self._http.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop, _FLUSHING_SECONDS)
        return stuck

    def unready(self) -> str:
        """Returns the reason that the server wants no traffic; "" when it is ready."""
        if self._draining:
            return "draining"
        if not self.repository.catalog.answering():
            return f"model {self.repository.catalog.default!r} is not loaded"
        return self._tls.expired() if self._tls else ""

    def describe(self) -> ModelDescription:
        """Describes the model that answers when a request names none, and its execution provider."""
        how = f"on {self._settings.provider}, {self._settings.instances} at a time"
        if not self.repository.catalog.answering():
            return ModelDescription(f"no model {how}", "")
        loaded = self.repository.catalog.route()
        metadata = loaded.model.metadata
        accuracy = f"{metadata.test_accuracy:.4f} on the MNIST test images"
        return ModelDescription(f"model {loaded.version} ({metadata.recipe}, {accuracy}) {how}", loaded.version)

    def _report_readiness(self) -> None:
        unready = self.unready()
        if self._control:
            self._control.report_readiness(unready)
        for name in (digits.NAME, open_inference.NAME):
            self._health.set(name, NOT_SERVING if unready else SERVING)

    async def _log_skipped(self) -> None:
        """Logs the directories of the repository that are not served, until cancelled."""
        directories = SkippedDirectories(self._settings.models)
        while True:
            with contextlib.suppress(RuntimeError):  # no thread could be started
                await on_disk_thread(directories.poll)
            await asyncio.sleep(self._settings.poll_seconds)

    async def _watch_expiry(self, tls: TLS) -> None:
        """Reports the moments at which the certificate expires, and at which another takes its place, until cancelled."""
        reported = tls.expired()
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            if tls.expired() != reported:
                reported = tls.expired()
                self._report_readiness()

    async def _expire_series(self) -> None:
        """Lets go of the metrics of versions that no longer serve, until cancelled."""
        retired = RetiredSeries(self.metrics)
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            models = self.repository.catalog.models.items()
            serving = {(name, loaded.version) for name, model in models for loaded in model.roles.values()}
            refused = {(name, str(number)) for name, model in models for number in (*model.refused, *_routed(model))}
            on_disk = {(name, str(number)) for name, model in models for number in model.versions}
            retired.expire(serving | refused, on_disk)
            self.metrics.count_dropped()
            try:
                await on_disk_thread(retired.delete_files)
            except (OSError, RuntimeError):  # of the disk, or no thread could be started
                log_event(log, logging.ERROR, "series_kept", "metrics could not be removed", exc_info=True)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _routed(model: ServedModel) -> set[int]:
    """Returns the versions that the routing of a model names; a metric reports those that are missing."""
    return model.routing.named() if model.routing else set()
