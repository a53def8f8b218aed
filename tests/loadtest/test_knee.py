import asyncio
import itertools
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.loadtest.knee import Step, find_knee, judge
from serving.loadtest.objectives import parse
from serving.loadtest.tally import Tally
from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.support.load import TIMEOUT, answering, load, right
from tests.support.service import DIGITS, service


async def test_the_knee_is_found_at_the_capacity_of_the_server(tmp_path: Path) -> None:
    """The server answers one call at a time, in 10 ms each: fewer than 100 per second."""

    async def one_at_a_time(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        async with turn:
            await asyncio.sleep(0.01)
        return right(request)

    turn, picture, written = asyncio.Lock(), tmp_path / "knee.png", tmp_path / "knee.json"
    async with answering(one_at_a_time) as target:
        flags = ["--find-knee", "--rate", "60", "--slo", "p90=300ms,errors=0", "--png", str(picture), "--json", str(written)]
        ran = await asyncio.to_thread(load, target.address, *flags)
        assert ran.returncode == 0, ran.stderr
        found = json.loads(written.read_text())
        assert 60 <= found["knee"]["calls_per_second"] <= 120  # up to ten waiting calls are not taken for a queue
        assert f"the knee: {found['knee']['calls_per_second']:,.0f} calls a second" in ran.stdout
        assert picture.read_bytes().startswith(b"\x89PNG")


async def test_a_first_rate_that_misses_an_objective_is_named() -> None:
    async def refuse_every_other(request: pb.RecognizeRequest, context: Any) -> pb.RecognizeResponse:
        if next(calls) % 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return right(request)

    calls = itertools.count()
    async with answering(refuse_every_other) as target:
        ran = await asyncio.to_thread(load, target.address, "--find-knee", "--slo", "errors=1%,p99=60s")
    assert (ran.returncode, "the first rate, 100 calls a second, misses: errors=1%, is" in ran.stdout) == (3, True)


def test_the_search_for_the_knee_ends_when_the_service_dies() -> None:
    with service("--workers", "1") as started:
        flags = ["--find-knee", "--rate", "20", "--slo", "p99=20s"]
        command = [*DIGITS, "loadtest", "--address", started.address, "--seconds", "1", "--warmup", "0.2", *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as testing:
            assert testing.stderr is not None
            assert "20 calls a second: kept" in testing.stderr.readline()
            started.process.kill()
            output, errors = testing.communicate(timeout=TIMEOUT)
    assert (testing.returncode, output) == (1, ""), errors
    assert "UNAVAILABLE" in errors.splitlines()[-1]


def step(rate: float, milliseconds: float) -> Step:
    tally = Tally()
    for _ in range(1000):
        tally.count("OK", milliseconds / 1000, right=True)
    tally.ended = tally.answered = 1000
    return judge(rate, tally, 10.0, parse("p99=20ms"))


@pytest.mark.parametrize("capacity", [150.0, 1000.0, 31_234.0])
def test_the_search_ends_within_five_percent_despite_two_chance_misses(capacity: float) -> None:
    tries: Counter[float] = Counter()

    def carry_out(rate: float) -> Step:
        tries[rate] += 1
        by_chance = rate == 100.0 and tries[rate] <= 2
        return step(rate, 1 if rate <= capacity and not by_chance else 1000)

    best, steps = find_knee(carry_out, 100.0)
    assert best is not None
    assert capacity / 1.05 <= best.rate <= capacity
    assert len(steps) < 25
    assert {tries[one.rate] for one in steps if one.broken} == {3}
    assert {tries[one.rate] for one in steps if not one.broken} == {1, 3}


@pytest.mark.parametrize("late", [2, 3])
def test_the_search_ends_where_the_sender_is_late_three_times(late: int) -> None:
    tries: Counter[float] = Counter()

    def carry_out(rate: float) -> Step:
        tries[rate] += 1
        one = step(rate, 1000 if rate > 300 else 1)
        if rate == 400.0 and tries[rate] <= late:
            one.tally.windows, one.tally.late_windows = 100, 51
        return judge(rate, one.tally, 10.0, parse("p99=20ms"))

    best, steps = find_knee(carry_out, 100.0)
    assert best is not None
    if late == 3:
        assert (best.rate, steps[-1].rate, steps[-1].sender_late, tries[400.0]) == (200.0, 400.0, True, 3)
    else:  # three more tries confirm the miss
        assert (tries[400.0], steps[2].sender_late, 300 / 1.05 <= best.rate <= 300) == (5, False, True)


def test_discarded_calls_do_not_look_like_a_queue_or_hide_one() -> None:
    tally = Tally(discarded=500)
    for _ in range(500):
        tally.count("OK", 0.001, right=True)
    tally.ended = tally.answered = 1000
    assert judge(100.0, tally, 10.0, parse("p99=1s")).broken == ()
    tally.ended = tally.answered = 900
    assert judge(100.0, tally, 10.0, parse("p99=1s")).broken == ("falls behind: 90 of 100 calls a second end",)


def test_a_rate_whose_answers_fall_behind_is_not_carried() -> None:
    tally = Tally()
    for _ in range(1000):
        tally.count("OK", 0.5, right=True)
    tally.ended = tally.answered = 900
    assert judge(100.0, tally, 10.0, parse("p99=1s")).broken == ("falls behind: 90 of 100 calls a second end",)


def test_calls_that_fail_at_once_are_not_taken_for_a_queue() -> None:
    tally = Tally()
    for number in range(1000):
        tally.count("OK" if number % 10 else "RESOURCE_EXHAUSTED", 0.001, right=True)
    tally.ended, tally.answered = 1000, 900
    assert judge(100.0, tally, 10.0, parse("errors=20%")).broken == ()
