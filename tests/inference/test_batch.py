import asyncio
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.call import Call
from serving.errors import DeadlineExceeded, InferenceFailed, Stopping
from serving.inference import batch
from serving.inference.batch import Slice, fail
from serving.inference.entry import Request
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.metrics import value

NOW = 10.0


def distribute(parts: list[Slice], rows: NDArray[np.float32], now: float, metrics: VersionMetrics | None = None) -> None:
    batch.distribute(parts, rows, now, metrics or VersionMetrics(Metrics(), "digits", "1"))


def entry(count: int, deadline: float = math.inf) -> Request:
    future = asyncio.get_running_loop().create_future()
    return Request(memoryview(bytes(784 * count)), count, deadline, arrived=1.0, answer=future, call=Call(), started=2.0)


def rows(*values: float) -> NDArray[np.float32]:
    """(n, 2) float32, with the same value in both columns of a row."""
    return np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)


async def test_each_request_of_a_run_gets_its_own_rows_and_times() -> None:
    one, three = entry(1), entry(3)
    distribute([Slice(one, 0, 1), Slice(three, 0, 3)], rows(1, 2, 3, 4), NOW)
    assert one.answer.result().rows.tolist() == rows(1).tolist()
    answer = three.answer.result()
    assert answer.rows.tolist() == rows(2, 3, 4).tolist()
    assert answer[1:] == (1.0, 2.0, NOW)


async def test_a_request_of_several_runs_is_answered_in_order_after_the_last() -> None:
    large, other = entry(3), entry(1)
    distribute([Slice(other, 0, 1), Slice(large, 2, 3)], rows(9, 3), NOW)
    assert other.answer.done()
    assert not large.answer.done()
    distribute([Slice(large, 0, 2)], rows(1, 2), NOW + 1)
    assert large.answer.result().rows.tolist() == rows(1, 2, 3).tolist()
    assert large.answer.result().ended == NOW + 1


@pytest.mark.parametrize("broken_value", [math.nan, math.inf, -math.inf])
async def test_nan_or_infinity_fails_only_the_request_that_has_it(broken_value: float) -> None:
    broken, sound = entry(2), entry(2)
    distribute([Slice(broken, 0, 2), Slice(sound, 0, 2)], rows(1, broken_value, 3, 4), NOW)
    assert isinstance(broken.answer.exception(), InferenceFailed)
    assert sound.answer.result().rows.tolist() == rows(3, 4).tolist()


async def test_a_request_past_its_deadline_fails_and_a_cancelled_one_is_left() -> None:
    late, cancelled, in_time = entry(1, deadline=NOW), entry(1), entry(1, deadline=NOW + 0.1)
    cancelled.answer.cancel()
    distribute([Slice(late, 0, 1), Slice(cancelled, 0, 1), Slice(in_time, 0, 1)], rows(1, 2, 3), NOW)
    assert isinstance(late.answer.exception(), DeadlineExceeded)
    assert cancelled.answer.cancelled()
    assert in_time.answer.result().rows.tolist() == rows(3).tolist()


async def test_the_first_failure_of_a_request_is_the_one_it_ends_with() -> None:
    failed = entry(1)
    metrics = VersionMetrics(Metrics(), "digits", "1")
    fail(failed, Stopping("first"), metrics)
    fail(failed, InferenceFailed("second"), metrics)
    distribute([Slice(failed, 0, 1)], rows(1), NOW)
    assert isinstance(failed.answer.exception(), Stopping)


@pytest.mark.parametrize("count", [1, 2, 20])  # one by one, or as an array
async def test_answered_entries_are_counted_with_their_times(count: int) -> None:
    metrics = Metrics()
    parts = [Slice(entry(1), 0, 1) for _ in range(count)]
    distribute(parts, rows(*range(count)), NOW, VersionMetrics(metrics, "digits", "1"))
    assert value(metrics.registry, "digits_queue_seconds_sum") == count * 1.0
    assert value(metrics.registry, "digits_model_request_seconds_sum", outcome="answered") == count * (NOW - 1)
    assert value(metrics.registry, "digits_model_request_seconds_count", outcome="answered") == count


async def test_entries_are_counted_once_they_are_complete_with_their_times() -> None:
    metrics = Metrics()
    version = VersionMetrics(metrics, "digits", "1")
    large, one, broken = entry(2), entry(1), entry(1)
    distribute([Slice(large, 0, 1), Slice(one, 0, 1), Slice(broken, 0, 1)], rows(1, 2, math.nan), NOW, version)
    distribute([Slice(large, 1, 2)], rows(3), NOW + 1, version)
    assert value(metrics.registry, "digits_queue_seconds_count") == 2
    assert value(metrics.registry, "digits_queue_seconds_sum") == 2.0
    assert value(metrics.registry, "digits_model_request_seconds_sum", outcome="answered") == (NOW - 1) + (NOW + 1 - 1)
    assert value(metrics.registry, "digits_model_request_seconds_count", outcome="failed") == 1
