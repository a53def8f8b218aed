import argparse
import asyncio
import re
import time
from typing import Any

import pytest

from serving.loadtest.command import run
from serving.loadtest.generator import Generator
from serving.loadtest.lateness import Windows
from serving.loadtest.objectives import parse
from serving.loadtest.plan import Plan
from serving.loadtest.report import figures, sender_too_slow, table
from serving.loadtest.tally import Tally
from serving.loadtest.target import Outcome

LOOPS: list[dict[str, Any]] = [{"callers": 4}, {"rate": 150.0, "arrivals": "fixed"}]


class Caller:
    """Answers after 20 ms, and blocks the sender for `seconds` in the calls whose numbers are in `blocked`."""

    def __init__(self, seconds: float = 0.0, blocked: Any = (), digit: int = 7):
        self.calls, self.seconds, self.blocked, self.digit = 0, seconds, blocked, digit

    async def call(self, request: bytes) -> Outcome:
        self.calls += 1
        if self.calls in self.blocked:
            time.sleep(self.seconds)  # noqa: ASYNC251 # stands for slow work of the sender itself
        await asyncio.sleep(0.02)
        return Outcome("OK", (self.digit,))

    async def close(self) -> None:
        pass


async def sent(caller: Caller, **plan: Any) -> tuple[Tally, Tally]:
    generator = Generator(Plan(**{"seconds": 1.0, "warmup_seconds": 0.0, **plan}), [caller], [(b"", (7,))])
    await generator.run(time.monotonic())
    return generator.take_tallies()


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
async def test_calls_of_windows_in_which_the_sender_hung_are_discarded(loop: dict[str, Any]) -> None:
    kept, discarded = await sent(Caller(0.3, [50]), late_seconds=0.2, **loop)
    assert kept.windows == 10
    assert 3 <= kept.late_windows <= 5
    assert discarded.calls > 0
    assert discarded.milliseconds(100) >= 300  # a call that was in flight, or due, when the sender began to hang
    assert kept.milliseconds(100) < 300
    assert kept.ended == pytest.approx(kept.calls + discarded.calls, abs=45)  # those due last end after the time
    kept.discard(discarded)
    assert (kept.sender_late, kept.discarded) == (False, discarded.calls)


@pytest.mark.parametrize("loop", LOOPS, ids=["closed", "open"])
async def test_a_sender_that_is_on_time_discards_nothing(loop: dict[str, Any]) -> None:
    kept, discarded = await sent(Caller(), late_seconds=10.0, **loop)
    assert (kept.windows, kept.late_windows, discarded.calls) == (10, 0, 0)
    assert kept.calls >= kept.answered > 0


async def test_wrong_answers_count_in_late_windows_too() -> None:
    kept, discarded = await sent(Caller(0.3, [50], digit=3), callers=4, late_seconds=0.2)
    assert kept.late_windows >= 3
    assert (kept.wrong, discarded.calls) == (kept.calls, 0)


async def test_all_calls_of_a_sender_that_is_always_late_count() -> None:
    kept, discarded = await sent(Caller(0.014, range(1000)), rate=150.0, arrivals="fixed")  # twice the interval of the calls
    assert kept.late_windows > 5
    calls = kept.calls + discarded.calls
    kept.discard(discarded)
    assert (kept.calls, kept.discarded) == (calls, 0)
    assert kept.late_milliseconds(99) > 500
    assert re.match(r"the sender is too slow: it was late in \d+ of 10 windows", sender_too_slow(kept))


def late(windows: int) -> Tally:
    tally = Tally(windows=100, late_windows=windows)
    for _ in range(1000):
        tally.count("OK", 0.03, right=True)
    tally.ended = tally.answered = 1000
    return tally


@pytest.mark.parametrize(
    ("windows", "slo", "status"),
    [(50, "p99=20ms", 3), (51, "p99=20ms", 1), (51, "p99=40ms", 0)],
    ids=["few", "many", "kept"],
)
def test_a_late_sender_does_not_blame_the_service(
    windows: int, slo: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serving.loadtest.processes.measure", lambda *_: late(windows))
    options: Any = argparse.Namespace(slo=parse(slo), processes=1, find_knee=False, png=None, json=None)
    target: Any = argparse.Namespace(address="nowhere")
    assert run(Plan(rate=100.0), target, options) == status
    blamed = "the sender was late too often to judge the service by: p99=20ms, is 30.015ms"
    assert (blamed in capsys.readouterr().err) is (status == 1)


def test_the_table_names_the_late_windows() -> None:
    tally = late(7)
    assert table([figures(Plan(rate=100.0), tally)]).splitlines()[2].endswith("| 7 of 100 | - | 0 |")


def test_a_delay_makes_every_window_late_that_it_touches() -> None:
    windows = Windows(100.0, 1.0)
    windows.mark_late(100.25, 100.41)
    windows.mark_late(99.0, 99.5)  # in the warm-up
    assert [windows.is_late(100.05 + number / 10) for number in range(10)] == [False] * 2 + [True] * 3 + [False] * 5
    assert windows.judge(100.35) == (3, 1)
    assert [windows.is_open(moment) for moment in (100.25, 100.35, 101.05)] == [False, True, False]
    assert windows.judge(100.36) == (0, 0)
    assert windows.judge(float("inf")) == (7, 2)
