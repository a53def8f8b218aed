"""One process of a load test: sends its share of the calls, and reports the results twice a second."""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.client.image_files import read_image
from serving.loadtest.lateness import BEAT_SECONDS, Windows
from serving.loadtest.plan import Plan
from serving.loadtest.tally import Tally
from serving.loadtest.target import Caller, Digits, Images, Target

SAMPLES = Path(__file__).parent.parent / "samples"
_REPORT_SECONDS = 0.5  # interval between two reports
_EARLY_SECONDS = 0.001  # asyncio rounds a sleep up by so much; a call is sent too early by that rather than too late
_MAX_IN_FLIGHT = 5000  # calls of an open loop; beyond that, a process would measure itself
_FIRST_CALLS = 3  # attempts, because connecting may take longer than a call's timeout
_MAX_PREPARED_IMAGES = 4096  # in all requests together
_MAX_PREPARED_REQUESTS = 64


class _Ended(NamedTuple):
    """A call that has ended: `seconds` after it was `due`, of which the sender took `late` until it sent the call."""

    code: str
    due: float
    seconds: float
    late: float
    right: bool


class Generator:
    """Sends this process's share of the calls.

    A call counts once its window is over. Calls of windows in which the sender was late are counted apart.
    """

    def __init__(self, plan: Plan, callers: Sequence[Caller], requests: Sequence[tuple[bytes, Digits]]):
        self._plan = plan
        self._callers = callers
        self._requests = cycle(requests)
        self._tally, self._discarded = Tally(), Tally()
        self._ended: list[_Ended] = []  # calls whose window is still open
        self._windows = Windows(0.0, 0.0)
        self._counting_from = self._counting_until = 0.0
        self._in_flight = 0
        self._next_due = math.inf  # of an open loop
        self._last_beat = 0.0

    def take_tallies(self) -> tuple[Tally, Tally]:
        """Returns the results since the last call of this method: those that count, and those of late windows."""
        taken = self._tally, self._discarded
        self._tally, self._discarded = Tally(), Tally()
        return taken

    async def run(self, start: float) -> None:
        """Sends until the plan's time is over, and waits for the answers. `start` is on the clock of time.monotonic."""
        plan = self._plan
        self._counting_from = start + plan.warmup_seconds
        end = self._counting_until = self._counting_from + plan.seconds
        self._windows = Windows(self._counting_from, plan.seconds)
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        self._last_beat = time.monotonic()
        beating = asyncio.create_task(self._beat())
        if plan.rate is not None:
            await self._open_loop(plan.rate, start, end)
        else:
            callers = [self._callers[number % len(self._callers)] for number in range(plan.callers or 0)]
            await asyncio.gather(*(self._closed_loop(caller, end) for caller in callers))
        beating.cancel()
        self._check_lag()
        self._close_windows(math.inf)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._check_lag()
            self._close_windows(min(self._last_beat, self._next_due))

    def _check_lag(self) -> None:
        """Marks the time since the last beat as late if this beat is: calls were sent, and answers received, late."""
        now = time.monotonic()
        if now - self._last_beat - BEAT_SECONDS > self._plan.late_seconds:
            self._windows.mark_late(self._last_beat, now)
        self._last_beat = now

    def _close_windows(self, moment: float) -> None:
        """Counts the calls of the windows that ended before `moment`."""
        closed, late = self._windows.judge(moment)
        if not closed:
            return
        self._tally.windows += closed
        self._tally.late_windows += late
        ended, self._ended = self._ended, []
        for call in ended:
            self._add(call)

    def _add(self, call: _Ended) -> None:
        if self._windows.is_open(call.due):
            self._ended.append(call)
            return
        wrong = call.code == "OK" and not call.right  # which no lateness explains
        tally = self._discarded if self._windows.is_late(call.due) and not wrong else self._tally
        if call.code != "UNSENT":
            tally.sent(call.late)
        tally.count(call.code, call.seconds, right=call.right)

    async def _closed_loop(self, caller: Caller, end: float) -> None:
        while (due := time.monotonic()) < end:
            await self._send(caller, due)

    async def _open_loop(self, rate: float, start: float, end: float) -> None:
        callers = cycle(self._callers)
        async with asyncio.TaskGroup() as calls:  # waits for the last answers
            for due in _arrivals(rate, self._plan, start, end):
                self._next_due = due
                early = due - time.monotonic()
                if early > _EARLY_SECONDS:
                    await asyncio.sleep(early - _EARLY_SECONDS)
                elif early < -_EARLY_SECONDS:
                    await asyncio.sleep(0)  # late, but answers must be received, too
                if self._in_flight < _MAX_IN_FLIGHT:
                    calls.create_task(self._send(next(callers), due))
                else:
                    self._count("UNSENT", due, due, due, right=False)
            self._next_due = math.inf

    async def _send(self, caller: Caller, due: float) -> None:
        request, expected = next(self._requests)
        self._in_flight += 1
        sent = time.monotonic()
        due = min(due, sent)
        if sent - due > self._plan.late_seconds:
            self._windows.mark_late(due, sent)
        outcome = await caller.call(request)
        self._in_flight -= 1
        self._count(outcome.code, due, sent, time.monotonic(), right=outcome.digits == expected)

    def _count(self, code: str, due: float, sent: float, end: float, *, right: bool) -> None:
        if self._counting_from <= due:
            self._add(_Ended(code, due, end - due, sent - due, right))
        if code != "UNSENT" and self._counting_from <= end < self._counting_until:
            self._tally.ended += 1
            self._tally.answered += code == "OK" and right


def _arrivals(rate: float, plan: Plan, start: float, end: float) -> Iterator[float]:
    """Yields the times at which the calls of an open loop are due."""
    random = np.random.default_rng(plan.seed)
    due = start
    while due < end:
        yield due
        due += 1 / rate if plan.arrivals == "fixed" else random.exponential(1 / rate)


def samples() -> Images:
    """Returns one image of each digit from 0 to 9, (10, 28, 28) uint8."""
    return np.stack([np.asarray(read_image(SAMPLES / f"{digit}.png")) for digit in range(10)])


def _requests(plan: Plan, target: Target) -> list[tuple[bytes, Digits]]:
    """Encodes different requests of the plan's size, from the samples. Returns each with the digits in its images."""
    images = samples()
    count = max(1, min(_MAX_PREPARED_REQUESTS, _MAX_PREPARED_IMAGES // plan.images))
    expected = np.random.default_rng(plan.seed).integers(0, 10, (count, plan.images))
    return [(target.request(plan, images[digits]), tuple(digits.tolist())) for digits in expected]


async def _generate(plan: Plan, target: Target, pipe: Connection) -> None:
    callers = target.callers(plan)
    requests = _requests(plan, target)
    try:
        for caller in callers:  # opens every connection before the test begins
            for _ in range(_FIRST_CALLS):
                first = await caller.call(requests[0][0])
                if first.code == "OK":
                    break
            else:
                pipe.send(("failed", f"{first.code}: {first.details}" if first.details else first.code))
                return
        pipe.send(("ready", None))
        start = await asyncio.to_thread(pipe.recv)
        generator = Generator(plan, callers, requests)
        running = asyncio.create_task(generator.run(start))
        while not running.done():
            await asyncio.wait([running], timeout=_REPORT_SECONDS)
            pipe.send(("tally", [tally.packed() for tally in generator.take_tallies()]))
        running.result()
        pipe.send(("done", None))
    finally:
        for caller in callers:
            await caller.close()


def generate(plan: Plan, target: Target, pipe: Connection) -> None:
    """Runs in a process of its own: sends "ready", waits for the start time, then sends tallies, and "done" at the end."""
    with contextlib.suppress(KeyboardInterrupt, EOFError, ConnectionError):
        asyncio.run(_generate(plan, target, pipe))
