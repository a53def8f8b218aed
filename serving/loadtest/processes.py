"""Runs a plan in several processes, and adds up their results."""

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
_START_SECONDS = 0.1  # from when all processes are ready until they start together
_PROGRESS_SECONDS = 0.5  # interval between two reports of progress


class LoadTestError(Exception):
    """The test can't be carried out. The message gives the reason."""


@dataclass(frozen=True)
class Progress:
    """The progress of a measurement.

    Attributes:
        seconds: time since the warm-up began.
        latest: results since the last report, about half a second; empty during the warm-up.
        answered_per_second: calls answered per second in the same time.
    """

    seconds: float
    latest: Tally
    answered_per_second: float


def measure(plan: Plan, target: Target, processes: int, report: Callable[[Progress], None] = lambda _: None) -> Tally:
    """Carries out a plan.

    Args:
        plan: the calls of all processes together.
        target: the service under test.
        processes: number of sending processes.
        report: called with the progress, twice a second.

    Returns:
        The results of the calls. Calls of windows in which a process was late are left out, unless such windows are too
        many: see Tally.sender_late.

    Raises:
        LoadTestError: the service does not answer, or a sending process died.
    """
    with _started([(share, target) for share in shares(plan, processes)]) as pipes:
        for pipe in pipes:
            if not pipe.poll(_READY_SECONDS):
                raise LoadTestError(f"{target.address} does not answer")
            kind, content = _receive(pipe)
            if kind != "ready":
                raise LoadTestError(f"{target.address} answers a first call with {content}")
        start = time.monotonic() + _START_SECONDS
        for number, pipe in enumerate(pipes):
            _send(pipe, start + (number / plan.rate if plan.rate else 0.0))  # spreads the calls of a fixed rate evenly
        counted, late, total, open_pipes = Tally(), Tally(), Tally(), set(pipes)
        reported = time.monotonic()
        while open_pipes:
            ready = wait(open_pipes, timeout=1)
            for pipe in [pipe for pipe in open_pipes if pipe in ready]:
                kind, content = _receive(pipe)
                if kind == "done":
                    open_pipes.remove(pipe)
                else:
                    for tally, packed in zip((counted, late), content, strict=True):
                        tally.add(Tally.unpacked(packed))
            interval = time.monotonic() - reported
            if interval >= _PROGRESS_SECONDS or not open_pipes:
                total.add(counted)
                report(Progress(time.monotonic() - start, counted, counted.answered / max(interval, _PROGRESS_SECONDS)))
                counted, reported = Tally(), reported + interval
        total.discard(late)
        return total


def shares(plan: Plan, processes: int) -> list[Plan]:
    """Divides a plan among processes. A process that would have no caller is left out."""
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


def _receive(pipe: Connection) -> tuple[str, Any]:
    with _reporting_death():
        message: tuple[str, Any] = pipe.recv()
    return message


def _send(pipe: Connection, start: float) -> None:
    with _reporting_death():
        pipe.send(start)


@contextmanager
def _reporting_death() -> Iterator[None]:
    """Turns the errors of a pipe whose process has died into LoadTestError."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise LoadTestError("a process of the test has died; its own error, if any, is printed above") from None


@contextmanager
def _started(work: list[tuple[Plan, Target]]) -> Iterator[list[Connection]]:
    """Starts a process for each share, and yields their pipes. All processes are gone after the block.

    They are spawned, because gRPC does not survive a fork.
    """
    context = multiprocessing.get_context("spawn")
    started: list[SpawnProcess] = []
    pipes: list[Connection] = []
    try:
        for arguments in work:
            pipe, other_end = context.Pipe()
            process = context.Process(target=generate, args=(*arguments, other_end), daemon=True)
            process.start()
            other_end.close()
            started.append(process)
            pipes.append(pipe)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join(1)
            if process.is_alive():
                process.kill()
                process.join()
