r"""Several worker processes on one port, under a supervisor that starts them, restarts the dead, and stops them all.

                 supervisor          holds the port without listening; serves /metrics, /healthz and /readyz.

                 /    |    \         message_channel.py: configuration, stop requests, model changes, heartbeats.

            worker worker worker     server.py each, listening on the port with SO_REUSEPORT.

                 \    |    /

            multiprocess_metrics     files in memory, which the supervisor adds up.

The kernel gives each new connection to one of the workers, and the connection stays there. The supervisor answers no
call and loads no model. It imports neither gRPC nor ONNX Runtime nor NumPy, so that no fault of theirs can end it.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from typing import Any

from serving.errors import CannotStart
from serving.ports import reserve
from serving.process.heartbeat import Heartbeat
from serving.process.message_channel import BrokenChannel, Message
from serving.process.model_changes import ModelChanges
from serving.process.shutdown import Stop, watch_signals
from serving.process.startup_log import ModelDescription, log_started, log_stopped
from serving.process.worker_process import EXIT_SECONDS, WorkerProcess, spawn
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.multiprocess_metrics import MetricsDirectory, SupervisorMetrics, candidate_directories
from serving.web.operations import HttpServer

log = logging.getLogger(__name__)

# The wait before a dead worker is replaced doubles from death to death, until a worker has lived long enough.
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 10.0
_LONG_LIFE_SECONDS = 60.0

_CHECKS_PER_TIMEOUT = 3  # of the watchdog, for each worker
_MISSED_CHECKS_OF_A_READY_WORKER = 1


class StartFailed(CannotStart):
    """A worker can't start; the message is the worker's own."""


async def supervise(settings: Settings, metrics_directory: str) -> int:
    """Serves with `settings.workers` workers until SIGTERM or SIGINT.

    Args:
        settings: settings of the workers.
        metrics_directory: directory for the metrics of the workers; empty chooses one, in memory if possible.

    Returns:
        The exit status: 1 if a worker did not exit with 0, as when it had to be killed.

    Raises:
        CannotStart: PortTaken; NoRoom for the metrics of the workers; StartFailed when a worker can't start.
    """
    stops = watch_signals(settings)
    with reserve(settings.host, settings.grpc_port) as port:
        directory = MetricsDirectory(settings.workers, candidate_directories(metrics_directory))
        try:
            supervisor = Supervisor(settings.model_copy(update={"grpc_port": port}), directory)
            http = HttpServer(
                settings.host,
                settings.metrics_port,
                supervisor.metrics.registry,
                lost=Heartbeat().lost,
                unready=supervisor.unready,
            )
            try:
                return await supervisor.run(stops, http.port)
            finally:
                http.close()
        finally:
            directory.remove()


class Supervisor:
    """Keeps the workers alive, from the first start to the last exit.

    Attributes:
        metrics: metrics of the supervisor and of all workers.
    """

    def __init__(self, settings: Settings, directory: MetricsDirectory):
        """Starts no worker yet.

        Args:
            settings: settings of the workers; their gRPC port is reserved.
            directory: directory for the metrics of the workers.
        """
        self._settings = settings
        self._directory = directory
        self._workers: dict[int, WorkerProcess] = {}  # the live ones, by number
        self._started: asyncio.Future[ModelDescription] = asyncio.get_running_loop().create_future()
        self._stop: Stop | None = None
        self._stopping = asyncio.Event()
        self._failed = False  # a worker did not exit with 0 at the shutdown
        self._signal_mask = asyncio.Lock()
        self._changes = ModelChanges(settings.load_seconds)
        self.metrics = SupervisorMetrics(directory, self._pids)

    def unready(self) -> str:
        """Returns the reason why the service accepts no traffic; empty when it does."""
        if self._stopping.is_set():
            return "draining"
        if not self._started.done():
            return "starting"
        reasons = [_unready(worker) for worker in [*self._workers.values()]]
        return min(reasons, default="no worker is alive")  # empty, that is ready, if one worker is: "" sorts first

    async def run(self, stops: "asyncio.Queue[Stop]", http_port: int) -> int:
        """Starts the workers, keeps them alive, and stops them on a stop request; returns the exit status.

        Raises:
            StartFailed: a worker can't start; the others are killed.
        """
        keeping = [asyncio.create_task(self._keep_alive(number)) for number in range(self._settings.workers)]
        stopping = asyncio.create_task(stops.get())
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((self._started, stopping), return_when=asyncio.FIRST_COMPLETED)
            if self._started.done():
                log_started(self._settings, self._started.result(), self._settings.grpc_port, http_port)
            await asyncio.wait((stopping, *keeping), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                await asyncio.gather(*keeping)  # they end before a stop request only by a bug, which is raised here
            await self._shut_down(await stopping, stops, keeping)
        finally:
            stopping.cancel()
            watching.cancel()
            self._stopping.set()
            for worker in self._workers.values():
                worker.kill()
            await asyncio.gather(*keeping, return_exceptions=True)
        log_stopped(self._directory)
        return int(self._failed)

    async def _watch(self) -> None:
        """Watchdog: kills workers whose event loop hangs: their callers would wait in vain.

        It counts checks instead of seconds: after a pause of the whole machine, no worker is late.
        """
        while True:
            await asyncio.sleep(self._settings.watchdog_seconds / _CHECKS_PER_TIMEOUT)
            for worker in [*self._workers.values()]:
                worker.missed_checks += worker.answers
                if worker.answers and worker.missed_checks > _CHECKS_PER_TIMEOUT:
                    _log(logging.ERROR, "worker_stuck", f"{worker} hangs; killing it", worker)
                    worker.kill()
                    worker.missed_checks = 0

    async def _shut_down(self, stop: Stop, stops: "asyncio.Queue[Stop]", keeping: "list[asyncio.Task[None]]") -> None:
        """Stops all workers at once and waits for them; a later stop request cuts the wait short."""
        while True:
            self._stop = stop
            self._stopping.set()
            for worker in self._workers.values():
                worker.stop(stop)
            limit = stop.drain_seconds + stop.grace_seconds + EXIT_SECONDS
            sooner = asyncio.create_task(stops.get())
            ended = asyncio.gather(*keeping)
            await asyncio.wait((ended, sooner), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() or not sooner.done():
                break
            stop = sooner.result()
        sooner.cancel()
        for worker in self._workers.values():
            _log(logging.ERROR, "worker_killed", f"{worker} has not ended; killing it", worker)
            worker.kill()
        await ended

    async def _keep_alive(self, number: int) -> None:
        """Starts a worker, and a replacement whenever it dies, until the shutdown."""
        backoff = _FIRST_BACKOFF_SECONDS
        for attempt in itertools.count():
            try:
                worker = await self._start(number)
            except Exception as error:  # no room for its metrics, no memory, no process, no thread
                if self._fail_start(f"worker {number} can't be started: {error}"):
                    return
                message = f"worker {number} can't be started: {error}; trying again in {backoff:g} s"
                log_event(log, logging.ERROR, "worker_not_started", message, worker=number, backoff_seconds=backoff)
            else:
                self.metrics.restarts.inc(attempt > 0)
                status = await self._follow(worker)
                if self._stopping.is_set():
                    self._failed = self._failed or status != 0
                    return
                # A worker that a signal has ended, such as that of the kernel out of memory, may start the next time.
                if status >= 0 and self._fail_start(f"worker {number} exited during its start, with status {status}"):
                    return
                if time.monotonic() - worker.born >= _LONG_LIFE_SECONDS:
                    backoff = _FIRST_BACKOFF_SECONDS
                message = f"{worker} died with status {status}; another takes its place in {backoff:g} s"
                _log(logging.ERROR, "worker_died", message, worker, status=status, backoff_seconds=backoff)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
                return
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)

    async def _start(self, number: int) -> WorkerProcess:
        """Starts and configures the worker with this number. Raises OSError if it can't be started."""
        self._directory.reserve(number)
        worker = self._workers[number] = await spawn(number, self._directory.lock, self._signal_mask)
        worker.channel.send(
            "configure",
            number=number,
            directory=str(self._directory.path),
            settings=self._settings.model_dump(mode="json"),
            unloaded=sorted(self._changes.unloaded),
        )
        self._changes.add_worker(worker.channel)
        if self._stop:
            worker.stop(self._stop)
        elif self._stopping.is_set():  # another worker's start failed meanwhile, and all live workers were killed
            worker.kill()
        return worker

    async def _follow(self, worker: WorkerProcess) -> int:
        """Receives the messages of a worker until it is dead; returns its exit status."""
        try:
            while (message := await worker.channel.receive()) is not None:
                worker.missed_checks = 0
                self._receive(worker, message)
        except Exception as error:  # whatever a worker sends may end that worker, and nothing else
            reason = f"{worker} has sent a message that can't be used, killing it: {error}"
            bug = not isinstance(error, BrokenChannel)
            _log(logging.ERROR, "worker_message_refused", reason, worker, exc_info=bug)
            worker.kill()
        worker.answers, worker.unready = False, "dead"
        self._count_answering()
        status = await worker.reap(kill=not self._stopping.is_set())
        del self._workers[worker.number]
        self._directory.forget(worker.number)
        self._changes.remove_worker(worker.channel)
        return status

    def _receive(self, worker: WorkerProcess, message: Message) -> None:
        match message["kind"]:
            case "readiness":
                worker.unready = str(message["unready"])
            case "started":
                worker.answers = True
                self._count_answering()
                if self._started.done():
                    _log(logging.INFO, "worker_started", f"{worker} answers", worker)
                elif sum(worker.answers for worker in self._workers.values()) == self._settings.workers:
                    self._started.set_result(ModelDescription(message["description"], message["version"]))
            case "failed":
                if not self._fail_start(message["reason"]):
                    _log(logging.ERROR, "worker_failed", f"{worker} can't start: {message['reason']}", worker)
            case "change":
                self._changes.request(worker.channel, message)
            case "applied":
                self._changes.acknowledge(worker.channel, message)

    def _fail_start(self, reason: str) -> bool:
        """Fails the start of the service, unless all workers had started before; returns true if it has failed."""
        if not self._started.done():
            self._started.set_exception(StartFailed(reason))
        return self._started.exception() is not None

    def _count_answering(self) -> None:
        self.metrics.workers.set(sum(worker.answers for worker in self._workers.values()))

    def _pids(self) -> list[int]:
        return [worker.process.pid for worker in [*self._workers.values()]]


def _unready(worker: WorkerProcess) -> str:
    """Returns the reason why a worker accepts no traffic; empty when it does."""
    if not worker.answers:
        return "starting"
    if worker.missed_checks > _MISSED_CHECKS_OF_A_READY_WORKER:
        return "no worker responds"
    return worker.unready


def _log(level: int, event: str, message: str, worker: WorkerProcess, **fields: Any) -> None:
    log_event(log, level, event, message, worker=worker.number, worker_pid=worker.process.pid, **fields)
