import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import InferenceFailed
from serving.inference.batcher import Batcher
from serving.inference.classifier import SHOWS, Classifier
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.inference.requests import Images, StartBatcher, submit, until_waiting
from tests.support.calls import TIMEOUT
from tests.support.event_loop import turns
from tests.support.metrics import value
from tests.support.models import GatedModel


async def test_a_lone_request_runs_at_once_with_the_output_of_the_model(
    start: StartBatcher, gated: GatedModel, model: Classifier, images: Images
) -> None:
    gated.open()
    np.testing.assert_allclose(await submit(start(), images[:1]), model.predict(images[:1]), atol=1e-6)
    assert [len(batch) for batch in gated.batches] == [1]


async def test_a_lone_request_runs_at_once_and_several_wait_for_more(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    async def waiting_after(requests: int) -> float:
        """Submits requests of one image; returns the images that wait five turns of the event loop later."""
        tasks = [submit(batcher, images[:1]) for _ in range(requests)]
        await turns(1)
        assert value(metrics.registry, "digits_queue_length_images") == requests
        await turns(5)
        found = value(metrics.registry, "digits_queue_length_images")
        await asyncio.gather(*tasks)
        return found

    batcher = start()
    gated.open()
    assert await waiting_after(1) == 0
    assert await waiting_after(3) == 3
    assert await waiting_after(1) == 1, "the callers of the previous run may call again"
    assert await waiting_after(1) == 0


class SleepyNetwork:
    """A network that takes a fixed time for each image, and fails on a batch with ink."""

    def __init__(self, seconds_per_image: float):
        self._seconds_per_image = seconds_per_image
        self.runs: list[tuple[int, threading.Thread]] = []

    def classify(self, images: Images) -> NDArray[np.float32]:
        self.runs.append((len(images), threading.current_thread()))
        time.sleep(self._seconds_per_image * len(images))
        if images.any():
            raise RuntimeError("no")
        return np.zeros((len(images), SHOWS + 1), np.float32)


@contextlib.asynccontextmanager
async def batching(network: SleepyNetwork, metrics: Metrics, **settings: Any) -> AsyncIterator[Batcher]:
    """Starts a batcher on a network, and closes it at the end of the block."""
    version = VersionMetrics(metrics, "digits", "1")
    batcher = Batcher(network, version, **{"instances": 1, "max_batch_size": 2000, "max_queue_size": 2000, **settings})
    yield batcher
    await batcher.close(TIMEOUT)


async def test_a_run_known_to_be_brief_stays_on_the_event_loop(metrics: Metrics) -> None:
    network = SleepyNetwork(0.001)
    async with batching(network, metrics, instances=4, brief_seconds=0.5) as batcher:
        for images in (1, 1, 2000, 1):
            await batcher.submit(bytes(images * 784))
        with pytest.raises(InferenceFailed):
            await batcher.submit(b"\1" * 784)
        await batcher.submit(bytes(784))
        await batcher.submit(bytes(784))
    on_loop = [thread is threading.current_thread() for _, thread in network.runs]
    # The run time is unknown before the first run, and again after a failure. The third run takes 2 seconds.
    assert on_loop == [False, True, False, True, True, False, True]


async def test_runs_on_the_event_loop_let_other_tasks_proceed(metrics: Metrics) -> None:
    network = SleepyNetwork(0.0001)
    async with batching(network, metrics, max_batch_size=10, brief_seconds=TIMEOUT) as batcher:
        await batcher.submit(bytes(784))
        bulk = asyncio.create_task(batcher.submit(bytes(500 * 784)))
        await asyncio.sleep(0)
        await batcher.submit(bytes(784))
        assert len(network.runs) < 10, "of the fifty that the bulk takes"
        await bulk


async def test_a_request_right_after_an_answer_does_not_count_as_lone(metrics: Metrics) -> None:
    async with batching(SleepyNetwork(0.05), metrics, brief_seconds=TIMEOUT) as batcher:
        await batcher.submit(bytes(784))
        await batcher.submit(bytes(784))
        third = asyncio.create_task(batcher.submit(bytes(784)))
        await turns(5)
        assert value(metrics.registry, "digits_queue_length_images") == 1
        await third


async def test_the_batcher_is_not_idle_between_the_queue_and_a_run(
    start: StartBatcher, gated: GatedModel, images: Images
) -> None:
    batcher = start(max_queue_delay_seconds=0.1)  # delays the run until the task below waits
    running = submit(batcher, images[:1])
    await turns(1)
    idle = asyncio.create_task(batcher.idle.wait())
    await gated.run_starts()
    early, _ = await asyncio.wait(
        {idle}, timeout=0.1
    )  # real time, in which the runner and its thread could report too early
    assert not early
    gated.open()
    await running
    await asyncio.wait_for(idle, TIMEOUT)


async def test_requests_that_arrive_during_a_run_form_the_next_batch(
    start: StartBatcher, gated: GatedModel, model: Classifier, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    first = submit(batcher, images[:1])
    await gated.run_starts()
    others = [submit(batcher, images[index : index + 1]) for index in range(1, 21)]
    await until_waiting(metrics, 20)
    gated.open()
    answers = np.concatenate(await asyncio.gather(first, *others))
    np.testing.assert_allclose(answers, model.predict(images[:21]), atol=1e-5)
    assert [len(batch) for batch in gated.batches] == [1, 20]
    assert value(metrics.registry, "digits_batch_size_images_sum") == 21
    assert value(metrics.registry, "digits_batch_size_images_count") == 2


async def test_a_large_request_is_split_into_batches_and_answered_in_order(
    start: StartBatcher, gated: GatedModel, model: Classifier, images: Images
) -> None:
    gated.open()
    answer = await submit(start(instances=2), images)
    np.testing.assert_allclose(answer, model.predict(images), atol=1e-5)
    assert max(len(batch) for batch in gated.batches) == 32


async def test_a_bulk_request_delays_a_single_image_by_one_batch_at_most(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    bulk = submit(batcher, images)
    await gated.run_starts()
    single = submit(batcher, images[500:501])
    await until_waiting(metrics, len(images) - 32 + 1)
    gated.open(2)
    await asyncio.wait_for(single, TIMEOUT)
    assert len(gated.batches) <= 3
    assert not bulk.done()
    gated.open()
    assert len(await bulk) == len(images)


async def test_bulk_requests_share_a_batch_in_turns(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    dark, light = np.zeros((100, 28, 28), np.uint8), np.full((100, 28, 28), 200, np.uint8)
    bulks = [submit(batcher, dark), submit(batcher, light)]
    await until_waiting(metrics, 200)
    gated.open()
    await asyncio.gather(blocker, *bulks)
    assert (gated.batches[1] == 0).all(axis=(1, 2)).sum() == 16, "each bulk request should get half of a batch of 32"


@pytest.mark.parametrize(("max_batch_size", "runs"), [(40, [1, 40, 5]), (43, [1, 40, 5]), (45, [1, 45])])
async def test_a_small_request_is_never_split_over_two_batches(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images, max_batch_size: int, runs: list[int]
) -> None:
    batcher = start(max_batch_size=max_batch_size)
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    fields = [submit(batcher, images[5 * index : 5 * index + 5]) for index in range(9)]
    await until_waiting(metrics, 45)
    gated.open()
    await asyncio.gather(blocker, *fields)
    assert [len(batch) for batch in gated.batches] == runs


async def test_bulk_requests_fill_every_batch(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    waiting = [submit(batcher, images[:count]) for count in (1, 100, 100)]
    await until_waiting(metrics, 201)
    gated.open()
    await asyncio.gather(blocker, *waiting)
    assert [len(batch) for batch in gated.batches] == [1, *[32] * 6, 9]
