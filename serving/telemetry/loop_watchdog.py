"""Names what holds the event loop: a thread watches its turns, and looks at its stack when one is late."""

import asyncio
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

HELD_SECONDS = 0.02
"""A turn of the event loop that takes longer makes every other caller wait noticeably."""

_PAUSE_SECONDS = 0.005  # from one turn to the next that is watched
_MOST_FRAMES = 12  # the innermost ones of a stack
_LOG_SECONDS = 1.0  # between two lines of the log


class Held(NamedTuple):
    """A turn of the event loop that took too long.

    Attributes:
        seconds: its time.
        cpu_seconds: processor time of the loop's thread in it: little on a busy machine, or where the loop waited.
        stack: where the loop was when the turn was late, as FILE:LINE FUNCTION, the innermost call last.
    """

    seconds: float
    cpu_seconds: float
    stack: str


class LoopWatchdog:
    """Watches the event loop that it is made on, while it is entered: `with LoopWatchdog(report):`."""

    def __init__(self, report: Callable[[Held], object]):
        """Starts nothing yet; `report` takes each turn that took too long, in the thread of the watchdog."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._cpu_clock = time.pthread_getcpuclockid(self._loop_thread)
        self._report = report
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_PAUSE_SECONDS):
            turned = threading.Event()
            began, cpu_began = time.monotonic(), time.clock_gettime(self._cpu_clock)
            try:
                self._loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # the loop has ended
                return
            if turned.wait(HELD_SECONDS):
                continue
            stack = self._stack()
            while not turned.wait(HELD_SECONDS):
                if self._ended.is_set():
                    return
            cpu_seconds = time.clock_gettime(self._cpu_clock) - cpu_began
            self._report(Held(time.monotonic() - began, cpu_seconds, stack))

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        frames = [*itertools.islice(traceback.walk_stack(frame), _MOST_FRAMES)] if frame else []
        return " > ".join(f"{_short(one.f_code.co_filename)}:{line} {one.f_code.co_name}" for one, line in reversed(frames))


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-3:])


class LogHeld:
    """Logs turns that took too long, at level debug: one a second, with the number of those that were left out."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left_out = 0

    def __call__(self, held: Held) -> None:
        """Logs one turn, or leaves it out."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        self._next = now + _LOG_SECONDS
        milliseconds, cpu = round(held.seconds * 1000), round(held.cpu_seconds * 1000)
        message = f"the event loop was held for {milliseconds} ms, {cpu} ms of them at work: {held.stack}"
        fields: dict[str, Any] = {"held_ms": milliseconds, "cpu_ms": cpu, "left_out": self._left_out}
        log_event(log, logging.DEBUG, "loop_held", message, **fields)
        self._left_out = 0
