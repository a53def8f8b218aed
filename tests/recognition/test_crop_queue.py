import asyncio
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

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
    frame_all = crop_queue._frame_all

    def frame_slowly(part: Sequence[bytes]) -> list[tuple[bytes, bool, str, float]]:
        framed.append(len(part))
        time.sleep(0.05)
        return frame_all(part)

    monkeypatch.setattr(crop_queue, "_frame_all", frame_slowly)
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
