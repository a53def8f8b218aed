r"""Several worker processes on one port, under a supervisor that starts them, restarts the dead, and stops them all.

                    supervisor      holds the port, without listening; /metrics, /healthz, /readyz; restarts
                    /    |    \      control.py: begin, stop, load and unload
               worker worker worker   each a whole server.py, listening on the port with SO_REUSEPORT
                    \    |    /
                  merged_metrics    files in memory, which the supervisor adds up

The kernel gives each new connection to one of the workers, where it stays. The supervisor answers no call and loads no
model: it imports neither gRPC nor ONNX Runtime nor numpy, so that nothing of theirs can bring it down.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import CannotStart
from serving.ports import reserve
from serving.process.heartbeat import Heartbeat
from serving.process.model_changes import ModelChanges
from serving.process.shutdown import Stop, stops_by_signal
from serving.process.startup_log import Described, announce, log_stopped
from serving.process.worker_channel import Channel, Message
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.multiprocess_metrics import MetricsDirectory, SupervisorMetrics, candidate_directories
from serving.web.operations import HttpServer

log = logging.getLogger(__name__)

# The wait before a dead worker is replaced: it doubles from death to death, until one has lived long enough.
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 10.0
_LONG_LIFE_SECONDS = 60.0

ENDING_SECONDS = 3.0
"""What a worker has to end in, beyond drain and grace or once it has hung up, before it is killed."""

# How often a worker is looked after while it may stand still.
_LOOKS = 3


class StartFailed(CannotStart):
    """A worker can't begin; the message is that worker's own."""


@dataclass(eq=False)
class _Worker:
    """One worker process.

    Attributes:
        number: its place, from 0, which its successor inherits.
        answers: whether it has started.
        unready: why it wants no traffic; nothing when it does.
        silent: how many looks at it ago it was heard last.
    """

    number: int
    process: Process
    channel: Channel
    answers: bool = False
    unready: str = "starting"
    born: float = field(default_factory=time.monotonic)
    silent: int = 0

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"

    def kill(self) -> None:
        if self.process.returncode is None:
            # Its own kill() would look whether it has ended, and so take its exit status away from who waits for it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)


async def supervise(settings: Settings, metrics_directory: str) -> int:
    """Serves with `settings.workers` workers until SIGTERM or SIGINT.

    Args:
        settings: the workers' settings.
        metrics_directory: where the workers' metrics are to be; in memory if that is possible, when empty.

    Returns:
        The exit status: 1 when a worker did not end well, as when it had to be killed.

    Raises:
        CannotStart: PortTaken, NoRoom for the workers' metrics, or StartFailed when a worker can't begin.
    """
    stops = stops_by_signal(settings)
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
    """The workers, from the first start to the last end.

    Attributes:
        metrics: its own and the workers'.
    """

    def __init__(self, settings: Settings, directory: MetricsDirectory):
        """Starts nothing yet.

        Args:
            settings: the workers'; the port is one that is held.
            directory: where they count.
        """
        self._settings = settings
        self._directory = directory
        self._workers: dict[int, _Worker] = {}  # those that live, by number
        self._started: asyncio.Future[Described] = asyncio.get_running_loop().create_future()
        self._stop: Stop | None = None
        self._stopping = asyncio.Event()
        self._failed = False  # whether a worker didn't end as it was told to
        self._spawning = asyncio.Lock()  # for the signal mask is one
        self._changes = ModelChanges()
        self.metrics = SupervisorMetrics(directory, self._pids)

    def unready(self) -> str:
        """Why no traffic is wanted; nothing when it is."""
        if self._stopping.is_set():
            return "draining"
        if not self._started.done():
            return "starting"
        reasons = [worker.unready if worker.answers else "starting" for worker in [*self._workers.values()]]
        return min(reasons, default="no worker lives")  # a worker that is ready has none, which comes first

    async def run(self, stops: "asyncio.Queue[Stop]", http_port: int) -> int:
        """Starts the workers, keeps them alive, and ends them when `stops` says so; returns the exit status.

        Raises:
            StartFailed: a worker can't begin; the others are gone, too.
        """
        keeping = [asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)]
        stopping = asyncio.create_task(stops.get())
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((self._started, stopping), return_when=asyncio.FIRST_COMPLETED)
            if self._started.done():
                announce(self._settings, self._started.result(), self._settings.grpc_port, http_port)
            await asyncio.wait((stopping, *keeping), return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                await asyncio.gather(*keeping)  # none ends before it is told to, but by a mistake of ours
            await self._end(await stopping, stops, keeping)
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
        """Kills workers whose event loop stands still, as their callers wait in vain.

        Silence is counted in looks rather than in seconds, so that none is killed because this machine stood still itself.
        """
        while True:
            await asyncio.sleep(self._settings.watchdog_seconds / _LOOKS)
            for worker in [*self._workers.values()]:
                worker.silent += worker.answers
                if worker.answers and worker.silent > _LOOKS:
                    _log(logging.ERROR, "worker_stuck", f"{worker} stands still; killing it", worker)
                    worker.kill()
                    worker.silent = 0

    async def _end(self, stop: Stop, stops: "asyncio.Queue[Stop]", keeping: "list[asyncio.Task[None]]") -> None:
        """Has all workers stop, at once; an order that comes later cuts it short."""
        while True:
            self._stop = stop
            self._stopping.set()
            for worker in self._workers.values():
                _tell(worker, stop)
            limit = stop.drain_seconds + stop.grace_seconds + ENDING_SECONDS
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

    async def _keep(self, number: int) -> None:
        """Keeps one worker alive: starts it, and when it dies another in its place, until all are to stop."""
        backoff = _FIRST_BACKOFF_SECONDS
        for attempt in itertools.count():
            try:
                worker = await self._start(number)
            except OSError as error:  # no room for its metrics, no memory, no process
                if self._fails_start(f"worker {number} can't be started: {error}"):
                    return
                message = f"worker {number} can't be started: {error}; trying again in {backoff:g} s"
                log_event(log, logging.ERROR, "worker_not_started", message, worker=number, backoff_seconds=backoff)
            else:
                self.metrics.restarts.inc(attempt > 0)
                status = await self._follow(worker)
                if self._stopping.is_set():
                    self._failed = self._failed or status != 0
                    return
                if self._fails_start(f"worker {number} ended as it began, with status {status}"):
                    return
                if time.monotonic() - worker.born >= _LONG_LIFE_SECONDS:
                    backoff = _FIRST_BACKOFF_SECONDS
                message = f"{worker} died with status {status}; another takes its place in {backoff:g} s"
                _log(logging.ERROR, "worker_died", message, worker, status=status, backoff_seconds=backoff)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
                return
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)

    async def _start(self, number: int) -> _Worker:
        """Starts the worker of that number. Raises OSError when it can't be."""
        self._directory.reserve(number)
        ours, its = socket.socketpair()
        channel = await Channel.open(ours)
        try:
            process = await self._spawn(its)
        except OSError:
            await channel.close()
            raise
        finally:
            its.close()
        worker = self._workers[number] = _Worker(number, process, channel)
        channel.send(
            "begin",
            number=number,
            directory=str(self._directory.path),
            settings=self._settings.model_dump(mode="json"),
            unloaded=sorted(self._changes.unloaded),
        )
        self._changes.join(channel)
        if self._stop:
            _tell(worker, self._stop)
        elif self._stopping.is_set():  # another's start failed meanwhile, and those that lived then have been killed
            worker.kill()
        return worker

    async def _spawn(self, end: socket.socket) -> Process:
        """A worker process that has inherited this end of the line, and nothing else but the lock of the directory."""
        async with self._spawning:
            # A worker ignores these signals, which a terminal sends to it as well. Until it has learnt to, they wait.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                return await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "serving.process.worker", str(end.fileno())),
                    stdin=DEVNULL,
                    pass_fds=(end.fileno(), self._directory.lock),
                    env={**os.environ, "PYTHONPATH": _python_path()},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def _follow(self, worker: _Worker) -> int:
        """Hears a worker until it is gone, and returns its exit status."""
        while (message := await worker.channel.receive()) is not None:
            worker.silent = 0
            self._hear(worker, message)
        worker.answers, worker.unready = False, "dead"
        self._count_answering()
        if not self._stopping.is_set():
            # It has hung up, and is of no more use. But it may yet have to say why: a traceback comes after that.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.process.wait(), ENDING_SECONDS)
            worker.kill()
        status = await worker.process.wait()
        await worker.channel.close()
        del self._workers[worker.number]
        self._directory.forget(worker.number)
        self._changes.leave(worker.channel)
        return status

    def _hear(self, worker: _Worker, message: Message) -> None:
        match message["kind"]:
            case "ready":
                worker.unready = message["unready"]
            case "started":
                worker.answers = True
                self._count_answering()
                if self._started.done():
                    _log(logging.INFO, "worker_started", f"{worker} answers", worker)
                elif sum(worker.answers for worker in self._workers.values()) == self._settings.workers:
                    self._started.set_result(Described(message["words"], message["version"]))
            case "failed":
                if not self._fails_start(message["reason"]):
                    _log(logging.ERROR, "worker_failed", f"{worker} can't begin: {message['reason']}", worker)
            case "ask":
                self._changes.asked(worker.channel, message)
            case "done":
                self._changes.done(worker.channel, message)

    def _fails_start(self, reason: str) -> bool:
        """Ends the start of the service, for a worker that can't begin, unless all had begun before."""
        if not self._started.done():
            self._started.set_exception(StartFailed(reason))
        return self._started.exception() is not None

    def _count_answering(self) -> None:
        self.metrics.workers.set(sum(worker.answers for worker in self._workers.values()))

    def _pids(self) -> list[int]:
        return [worker.process.pid for worker in [*self._workers.values()]]


def _tell(worker: _Worker, stop: Stop) -> None:
    worker.channel.send("stop", drain_seconds=stop.drain_seconds, grace_seconds=stop.grace_seconds)


def _log(level: int, event: str, message: str, worker: _Worker, **fields: Any) -> None:
    log_event(log, level, event, message, worker=worker.number, worker_pid=worker.process.pid, **fields)


def _python_path() -> str:
    """Has a worker import this same package, whatever lies in the working directory."""
    others = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(Path(__file__).parents[2]), *([others] if others else [])])
