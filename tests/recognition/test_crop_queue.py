import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.call import Call
from serving.errors import DeadlineExceeded, QueueFull, Stopping
from serving.imaging.crop import frame_crop
from serving.recognition import crop_queue
from serving.recognition.crop_queue import CropQueue
from serving.samples.photograph import photograph
from serving.telemetry.metrics import Metrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import value

Images = NDArray[np.uint8]


async def test_crops_are_framed_in_order_and_broken_ones_are_reported(images: Images) -> None:
    random = np.random.default_rng(1)
    crops = [photograph(image, random) for image in images[:70]]
    expected = [frame_crop(crop).image for crop in crops]
    crops[40], expected[40] = b"no picture", np.zeros((28, 28), np.uint8)
    metrics = Metrics()
    queue = CropQueue(1000, metrics)
    pixels, _, errors = await queue.frame(crops, math.inf)
    np.testing.assert_array_equal(np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28), expected)
    assert errors == {40: "neither a PNG nor a JPEG, but 10 bytes of something else"}
    assert value(metrics.registry, "digits_framing_seconds_count") == 70
    await queue.close(TIMEOUT)
    with pytest.raises(Stopping):
        await queue.frame([b""], math.inf)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slows framing down; returns the growing list of the number of crops in each step."""
    framed: list[int] = []
    frame_some = crop_queue._frame_some

    def frame_slowly(part: Sequence[bytes]) -> list[Any]:
        framed.append(len(part))
        time.sleep(0.05)
        return frame_some(part)

    monkeypatch.setattr(crop_queue, "_frame_some", frame_slowly)
    return framed


async def test_crops_above_the_limit_are_refused_with_a_time_to_retry(slow: list[int]) -> None:
    metrics = Metrics()
    queue = CropQueue(100, metrics)
    first = asyncio.create_task(queue.frame([b"no picture"] * 100, math.inf))
    await asyncio.sleep(0)
    assert value(metrics.registry, "digits_crops_waiting") == 100
    with pytest.raises(QueueFull, match="100 crops wait to be framed, and there is no room for 1 more") as full:
        await queue.frame([b""], math.inf)
    assert full.value.retry_after_seconds
    assert full.value.reason == "queue_full"
    first.cancel()
    await queue.close(TIMEOUT)


async def test_crops_of_cancelled_and_late_calls_are_not_framed(slow: list[int]) -> None:
    metrics = Metrics()
    queue = CropQueue(100, metrics)
    cancelled = asyncio.create_task(queue.frame([b"no picture"] * 100, math.inf))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(DeadlineExceeded):
        await queue.frame([b""] * 70, time.monotonic() + 0.01)
    assert sum(slow) <= 2 * crop_queue._TURN, "one step each"
    _, _, errors = await queue.frame([b""], math.inf)
    assert list(errors) == [0]
    assert value(metrics.registry, "digits_crops_waiting") == 0
    await queue.close(TIMEOUT)


async def test_calls_with_crops_take_turns(slow: list[int]) -> None:
    queue = CropQueue(1000, Metrics())
    many = asyncio.create_task(queue.frame([b""] * 40, math.inf))
    await asyncio.sleep(0)
    await queue.frame([b""], math.inf)
    assert len(slow) <= 4, "one crop waits for a few of the forty, not for all"
    many.cancel()
    await queue.close(TIMEOUT)


async def test_crops_of_more_bytes_than_the_limit_are_refused(slow: list[int]) -> None:
    queue = CropQueue(1000, Metrics())
    large = bytes(1 << 26)
    first = asyncio.create_task(queue.frame([large, large], math.inf))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await queue.frame([b"x"], math.inf)
    await first
    await queue.close(TIMEOUT)


async def test_crops_that_take_longer_than_the_grace_end_as_stopping(slow: list[int]) -> None:
    queue = CropQueue(1000, Metrics())
    running, waiting = (asyncio.create_task(queue.frame([b""] * 20, math.inf)) for _ in range(2))
    await asyncio.sleep(0)
    await queue.close(0.01)
    for call in (running, waiting):
        with pytest.raises(Stopping):
            await call
    with pytest.raises(Stopping):
        await queue.frame([b""], math.inf)


def call(peer: str) -> Call:
    return Call(peer=lambda: peer)


GREEDY, POLITE = call("ipv4:10.0.0.1:1"), call("ipv4:10.0.0.2:1")


async def test_clients_take_turns_however_many_calls_one_has(slow: list[int]) -> None:
    queue = CropQueue(1000, Metrics())
    greedy = [asyncio.create_task(queue.frame([b""] * 5, math.inf, GREEDY)) for _ in range(20)]
    await asyncio.sleep(0)
    await queue.frame([b""], time.monotonic() + TIMEOUT, POLITE)
    assert len(slow) <= 3
    await queue.close(0)
    await asyncio.gather(*greedy, return_exceptions=True)


async def test_crops_of_priority_batch_wait_for_live_ones(slow: list[int]) -> None:
    queue = CropQueue(1000, Metrics())
    batch = [asyncio.create_task(queue.frame([b""] * 5, math.inf, GREEDY, batch=True)) for _ in range(4)]
    live = [asyncio.create_task(queue.frame([b""] * 5, math.inf, GREEDY)) for _ in range(2)]
    await asyncio.gather(*live)
    assert sum(task.done() for task in batch) <= 1
    await asyncio.gather(*batch)
    await queue.close(TIMEOUT)


async def test_a_turn_of_crops_that_take_long_ends_early_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crop_queue, "_TURN_SECONDS", 0.0)
    metrics = Metrics()
    queue = CropQueue(1000, metrics)
    pixels, _, errors = await queue.frame([b"no picture", b"", b"x" * 3] * 4, math.inf)
    assert len(pixels) == 12 * 784
    assert [errors[index] for index in range(12)] == [
        f"neither a PNG nor a JPEG, but {size} bytes of something else" for size in (10, 0, 3) * 4
    ]
    assert value(metrics.registry, "digits_crops_waiting") == 0
    await queue.close(TIMEOUT)


@pytest.mark.parametrize("crops", [[b""] * 50, [bytes(1 << 25)]], ids=["crops", "bytes"])
async def test_a_full_queue_gives_way_to_a_client_with_less(slow: list[int], crops: list[bytes]) -> None:
    metrics = Metrics()
    queue = CropQueue(100, metrics)
    greedy = [asyncio.create_task(queue.frame(crops, math.inf, GREEDY)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="there is no room for"):
        await queue.frame(crops, math.inf, GREEDY)
    await queue.frame([b"x"], math.inf, POLITE)
    assert isinstance(greedy[1].exception(), QueueFull), "the newest"
    await greedy[0]
    assert value(metrics.registry, "digits_crops_waiting") == 0
    await queue.close(TIMEOUT)


async def test_a_late_call_ends_no_other(slow: list[int]) -> None:
    queue = CropQueue(100, Metrics())
    greedy = [asyncio.create_task(queue.frame([b""] * 50, math.inf, GREEDY)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="100 crops wait to be framed, and 1 more would be late"):
        await queue.frame([b""], time.monotonic() + 0.001, POLITE)
    await asyncio.gather(*greedy)
    await queue.close(TIMEOUT)


async def test_a_call_without_room_for_its_bytes_ends_no_other(slow: list[int]) -> None:
    queue = CropQueue(100, Metrics())
    greedy = [asyncio.create_task(queue.frame([b""] * 49, math.inf, GREEDY)) for _ in range(2)]
    heavy = asyncio.create_task(queue.frame([bytes(60 << 20)], math.inf, POLITE))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="99 crops wait to be framed, and there is no room for 2 more"):
        await queue.frame([bytes(10 << 20), b""], math.inf, POLITE)
    await asyncio.gather(heavy, *greedy)
    await queue.close(TIMEOUT)


async def test_jobs_with_most_bytes_give_way_newest_first_until_there_is_room(slow: list[int]) -> None:
    queue = CropQueue(100, Metrics())
    small = asyncio.create_task(queue.frame([bytes(4 << 20)], math.inf, call("ipv4:10.0.0.3:1")))
    greedy = [asyncio.create_task(queue.frame([bytes(10 << 20)], math.inf, GREEDY)) for _ in range(6)]
    await asyncio.sleep(0)
    await queue.frame([bytes(20 << 20)], math.inf, POLITE)
    outcomes = await asyncio.gather(*greedy, small, return_exceptions=True)
    assert [isinstance(outcome, QueueFull) for outcome in outcomes] == [False] * 4 + [True] * 2 + [False]
    await queue.close(TIMEOUT)


async def test_a_batch_call_behind_live_crops_that_make_it_late_is_refused(slow: list[int]) -> None:
    queue = CropQueue(1000, Metrics())
    live = [asyncio.create_task(queue.frame([b""] * 100, math.inf, GREEDY)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="200 crops wait to be framed, and 9 more would be late") as late:
        await queue.frame([b""] * 9, time.monotonic() + 0.05, POLITE, batch=True)
    assert late.value.reason == "batch_queue_full"
    await queue.close(0)
    await asyncio.gather(*live, return_exceptions=True)


async def test_a_fault_of_the_framing_ends_its_calls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    frame_some = crop_queue._frame_some

    def fail_once(crops: Sequence[bytes]) -> list[Any]:
        if crops[0] == b"fault":
            raise RuntimeError("no")
        return frame_some(crops)

    monkeypatch.setattr(crop_queue, "_frame_some", fail_once)
    queue = CropQueue(100, Metrics())
    faulty = asyncio.create_task(queue.frame([b"fault"] * 9, math.inf, GREEDY))
    fine = asyncio.create_task(queue.frame([b""], math.inf, POLITE))
    with pytest.raises(RuntimeError):
        await faulty
    assert len((await fine).errors) == 1
    await queue.close(TIMEOUT)
