import asyncio
import time

import numpy as np
import pytest

from serving.errors import DeadlineExceeded, InferenceFailed, QueueFull, Stopping
from serving.inference.classifier import Classifier
from serving.telemetry.metrics import Metrics
from tests.inference.requests import Images, StartBatcher, submit, until_waiting
from tests.support.calls import TIMEOUT
from tests.support.metrics import value
from tests.support.models import GatedModel


@pytest.mark.parametrize("size", [0, 783, 785])
async def test_a_part_of_an_image_is_refused_and_the_next_request_answered(
    start: StartBatcher, gated: GatedModel, images: Images, size: int
) -> None:
    gated.open()
    batcher = start()
    with pytest.raises(ValueError, match=f"{size} bytes"):
        await batcher.submit(bytes(size))
    assert len(await submit(batcher, images[:1])) == 1


async def test_a_cancelled_request_in_the_queue_is_not_run_and_others_are(
    start: StartBatcher, gated: GatedModel, model: Classifier, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    first = submit(batcher, images[:1])
    await gated.run_starts()
    cancelled, staying = submit(batcher, images[1:6]), submit(batcher, images[6:8])
    await until_waiting(metrics, 7)
    cancelled.cancel()
    await until_waiting(metrics, 2)
    gated.open()
    np.testing.assert_allclose(await staying, model.predict(images[6:8]), atol=1e-5)
    await first
    assert [len(batch) for batch in gated.batches] == [1, 2]


async def test_a_cancelled_request_in_a_run_does_not_harm_the_others(
    start: StartBatcher, gated: GatedModel, model: Classifier, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    cancelled, staying = submit(batcher, images[1:2]), submit(batcher, images[2:3])
    await until_waiting(metrics, 2)
    gated.open(1)
    await gated.run_starts()
    cancelled.cancel()
    gated.open()
    np.testing.assert_allclose(await staying, model.predict(images[2:3]), atol=1e-5)
    await blocker


async def test_a_failed_run_fails_every_request_in_it_and_the_next_succeeds(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    white = np.full((1, 28, 28), 255, np.uint8)
    failing = [submit(batcher, white), *(submit(batcher, images[index : index + 1]) for index in range(5))]
    await until_waiting(metrics, 6)
    gated.open()
    await blocker
    for outcome in await asyncio.gather(*failing, return_exceptions=True):
        assert isinstance(outcome, InferenceFailed)
    assert len(await submit(batcher, images[:3])) == 3


async def test_a_full_queue_refuses_at_once_with_a_time_to_retry_after(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start(max_queue_size=10)
    gated.open(1)
    await submit(batcher, images[:1])
    await gated.run_starts()
    running = submit(batcher, images[:1])
    await gated.run_starts()
    waiting = submit(batcher, images[:8])
    await until_waiting(metrics, 8)
    with pytest.raises(QueueFull, match="8 images wait") as refusal:
        await batcher.submit(images[:3].tobytes())
    assert (refusal.value.retry_after_seconds or 0) > 0
    fitting = submit(batcher, images[:2])
    gated.open()
    await asyncio.gather(running, waiting, fitting)


async def test_a_request_that_would_be_late_behind_the_queue_is_refused_at_once(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    slow = submit(batcher, images[:1])
    await gated.run_starts()
    await asyncio.sleep(0.05)  # the batcher learns from this run that an image takes 50 ms
    gated.open(1)
    await slow
    running = submit(batcher, images[:1])
    await gated.run_starts()
    alone = submit(batcher, images[:1], deadline=time.monotonic() + 0.2)  # admitted: the queue is empty
    await until_waiting(metrics, 1)
    waiting = submit(batcher, images[:19])
    await until_waiting(metrics, 20)
    message = "20 images wait, and 1 more would hardly be answered within their deadline"
    with pytest.raises(QueueFull, match=message) as refusal:
        await batcher.submit(images[:1].tobytes(), time.monotonic() + 0.2)
    assert (refusal.value.retry_after_seconds or 0) > 0
    patient = submit(batcher, images[:1], deadline=time.monotonic() + TIMEOUT)
    gated.open()
    await asyncio.gather(running, waiting, patient)
    await asyncio.gather(alone, return_exceptions=True)
    assert sum(len(batch) for batch in gated.batches) in (1 + 1 + 19 + 1, 1 + 1 + 19 + 1 + 1), "alone may be late"


async def test_time_without_work_does_not_slow_the_estimated_pace(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    gated.open(30)
    for _ in range(30):  # the batcher learns the fast pace
        await submit(batcher, images[:1])
        await gated.run_starts()
    running = submit(batcher, images[:1])
    await gated.run_starts()
    deadline = time.monotonic() + 0.01
    late = submit(batcher, images[:1], deadline)
    await until_waiting(metrics, 1)
    while time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    gated.open()
    await asyncio.gather(running, late, return_exceptions=True)
    await asyncio.sleep(1)  # the time without work
    await submit(batcher, images[:1])
    waiting = [submit(batcher, images[:1], deadline=time.monotonic() + 3) for _ in range(16)]
    assert len(await asyncio.gather(*waiting)) == 16


async def test_a_request_whose_deadline_passes_in_the_queue_is_never_run(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    first = submit(batcher, images[:1])
    await gated.run_starts()
    late = submit(batcher, images[1:4], deadline=time.monotonic())
    in_time = submit(batcher, images[4:5], deadline=time.monotonic() + TIMEOUT)
    await until_waiting(metrics, 4)
    gated.open()
    with pytest.raises(DeadlineExceeded):
        await late
    await asyncio.gather(first, in_time)
    assert [len(batch) for batch in gated.batches] == [1, 1]
    assert value(metrics.registry, "digits_queue_length_images") == 0


async def test_a_request_whose_deadline_passes_in_its_run_is_not_answered(
    start: StartBatcher, gated: GatedModel, images: Images
) -> None:
    batcher = start()
    deadline = time.monotonic() + 0.05
    late = submit(batcher, images[:1], deadline)
    await gated.run_starts()
    while time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    gated.open()
    with pytest.raises(DeadlineExceeded):
        await late


async def test_closing_answers_queued_requests_and_refuses_new_ones(
    start: StartBatcher, gated: GatedModel, images: Images
) -> None:
    batcher = start(instances=2)
    queued = [submit(batcher, images[index : index + 30]) for index in range(0, 300, 30)]
    await gated.run_starts()
    closing = asyncio.create_task(batcher.close(TIMEOUT))
    await asyncio.sleep(0)
    with pytest.raises(Stopping):
        await batcher.submit(images[:1].tobytes())
    gated.open()
    assert sum(len(answer) for answer in await asyncio.gather(*queued)) == 300
    await closing


async def test_closing_ends_every_request_although_a_run_hangs(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    hanging = submit(batcher, images[:1])
    await gated.run_starts()
    waiting = submit(batcher, images[1:2])
    await until_waiting(metrics, 1)
    assert await batcher.close(grace_seconds=0.05) == 1
    for outcome in await asyncio.wait_for(asyncio.gather(hanging, waiting, return_exceptions=True), TIMEOUT):
        assert isinstance(outcome, Stopping)


async def test_closing_an_idle_batcher_needs_no_grace(start: StartBatcher) -> None:
    assert await start(instances=2).close(grace_seconds=0) == 0
