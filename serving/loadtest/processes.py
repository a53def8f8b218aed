"""Several processes that carry out one plan together, and what all of them have seen."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from serving.loadtest.generator import generate
from serving.loadtest.plan import Plan
from serving.loadtest.tally import Tally
from serving.loadtest.target import Target

_READY_SECONDS = 60.0
_START_SECONDS = 0.1
_TELL_SECONDS = 0.5


class LoadTestError(Exception):
    """The test can't be carried out; the message says why."""


@dataclass(frozen=True)
class Progress:
    """How far a measurement is.

    Attributes:
        seconds: since its warm-up began.
        latest: what became of the calls of the last half second or so; empty while it warms up.
        answered_per_second: calls, meanwhile.
    """

    seconds: float
    latest: Tally
    answered_per_second: float


def measure(plan: Plan, target: Target, processes: int, tell: Callable[[Progress], None] = lambda _: None) -> Tally:
    """Carries out a plan, and says what became of its calls.

    Args:
        plan: what to send, by all processes together.
        target: what is called.
        processes: that send.
        tell: is told how it goes, twice a second.

    Raises:
        LoadTestError: the service does not answer.
    """
    with _started([(share, target) for share in shares(plan, processes)]) as pipes:
        for pipe in pipes:
            if not pipe.poll(_READY_SECONDS):
                raise LoadTestError(f"{target.address} does not answer")
            said, what = _received(pipe)
            if said != "ready":
                raise LoadTestError(f"{target.address} answers a first call with {what}")
        start = time.monotonic() + _START_SECONDS
        for number, pipe in enumerate(pipes):
            _send(pipe, start + (number / plan.rate if plan.rate else 0.0))  # calls at a fixed rate are not to come in pairs
        counted, total, open_pipes = Tally(), Tally(), set(pipes)
        told = time.monotonic()
        while open_pipes:
            ready = wait(open_pipes, timeout=1)
            for pipe in [pipe for pipe in open_pipes if pipe in ready]:
                said, what = _received(pipe)
                if said == "done":
                    open_pipes.remove(pipe)
                else:
                    counted.add(Tally.unpacked(what))
            since = time.monotonic() - told
            if since >= _TELL_SECONDS or not open_pipes:
                total.add(counted)
                tell(Progress(time.monotonic() - start, counted, counted.answered / max(since, _TELL_SECONDS)))
                counted, told = Tally(), told + since
        return total


def shares(plan: Plan, processes: int) -> list[Plan]:
    """Each process's part of a plan; one that would have no caller has none."""
    parts = []
    for number in range(processes):
        part = replace(plan, seed=plan.seed * 1000 + number)
        if plan.rate is not None:
            part = replace(part, rate=plan.rate / processes)
        if plan.callers is not None:
            callers = plan.callers // processes + (number < plan.callers % processes)
            part = replace(part, callers=callers, connections=min(plan.connections, callers))
        if part.callers != 0:
            parts.append(part)
    return parts


def _received(pipe: Connection) -> tuple[str, Any]:
    with _living():
        said: tuple[str, Any] = pipe.recv()
    return said


def _send(pipe: Connection, start: float) -> None:
    with _living():
        pipe.send(start)


@contextmanager
def _living() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise LoadTestError("a process of the test has died; if it could say why, that is above") from None


@contextmanager
def _started(work: list[tuple[Plan, Target]]) -> Iterator[list[Connection]]:
    """The processes, by their pipes; none outlives the block. gRPC does not survive a fork, so they are spawned."""
    context = multiprocessing.get_context("spawn")
    started: list[SpawnProcess] = []
    pipes: list[Connection] = []
    try:
        for arguments in work:
            here, there = context.Pipe()
            process = context.Process(target=generate, args=(*arguments, there), daemon=True)
            process.start()
            there.close()
            started.append(process)
            pipes.append(here)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join(1)
            if process.is_alive():
                process.kill()
                process.join()
