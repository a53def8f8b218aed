import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import DeadlineExceeded, InferenceFailed, QueueFull, Stopping
from serving.inference.batcher import Batcher
from serving.inference.classifier import PROBABILITIES
from serving.inference.model import Model
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import until, value
from tests.support.models import GatedModel

Images = NDArray[np.uint8]
StartBatcher = Callable[..., Batcher]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def start(gated: GatedModel, metrics: Metrics) -> AsyncIterator[StartBatcher]:
    """Starts a batcher of one instance on the gated model; it is closed when the test ends, the gate open."""
    batchers = []

    def start_batcher(**settings: float) -> Batcher:
        defaults = {"instances": 1, "max_batch_size": 32, "max_queue_size": 1000}
        batchers.append(Batcher(gated, VersionMetrics(metrics, "digits", "1"), **{**defaults, **settings}))  # type: ignore[arg-type]
        return batchers[-1]

    yield start_batcher
    gated.open()
    for batcher in batchers:
        await batcher.close(TIMEOUT)


async def until_waiting(metrics: Metrics, images: int) -> None:
    await until(metrics.registry, "digits_queue_length_images", images)


def submit(batcher: Batcher, images: Images, deadline: float = math.inf) -> asyncio.Task[NDArray[np.float32]]:
    async def probabilities() -> NDArray[np.float32]:
        return (await batcher.submit(images.tobytes(), deadline)).rows[:, PROBABILITIES]

    return asyncio.create_task(probabilities())


async def test_a_lone_request_is_run_at_once_and_answered_as_the_model_says(
    start: StartBatcher, gated: GatedModel, model: Model, images: Images
) -> None:
    gated.open()
    np.testing.assert_allclose(await submit(start(), images[:1]), model.predict(images[:1]), atol=1e-6)
    assert [len(batch) for batch in gated.batches] == [1]


async def test_a_lone_caller_waits_for_nobody_and_several_for_those_who_are_just_coming(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    async def waiting_after(requests: int) -> float:
        """Images that wait five turns of the event loop after so many requests came."""
        tasks = [submit(batcher, images[:1]) for _ in range(requests)]
        await asyncio.sleep(0)
        assert value(metrics.registry, "digits_queue_length_images") == requests
        for _ in range(5):
            await asyncio.sleep(0)
        found = value(metrics.registry, "digits_queue_length_images")
        await asyncio.gather(*tasks)
        return found

    batcher = start()
    gated.open()
    assert await waiting_after(1) == 0
    assert await waiting_after(3) == 3
    assert await waiting_after(1) == 1  # the run before had several callers, who may call again
    assert await waiting_after(1) == 0


class Sleeper:
    """A network that sleeps so long for each image, and fails on any that is not white."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.runs: list[tuple[int, threading.Thread]] = []

    def classify(self, images: Images) -> NDArray[np.float32]:
        self.runs.append((len(images), threading.current_thread()))
        time.sleep(self._seconds * len(images))
        if images.any():
            raise RuntimeError("no")
        return np.zeros((len(images), 23), np.float32)


@contextlib.asynccontextmanager
async def asleep(sleeper: Sleeper, metrics: Metrics, **settings: Any) -> AsyncIterator[Batcher]:
    """A batcher on it."""
    one = VersionMetrics(metrics, "digits", "1")
    batcher = Batcher(sleeper, one, **{"instances": 1, "max_batch_size": 2000, "max_queue_size": 2000, **settings})
    yield batcher
    await batcher.close(TIMEOUT)


async def test_a_run_that_is_thought_brief_is_done_on_the_event_loop_and_others_in_a_thread(metrics: Metrics) -> None:
    sleeper = Sleeper(0.001)
    async with asleep(sleeper, metrics, instances=4, brief_seconds=0.5) as batcher:
        for images in (1, 1, 2000, 1):
            await batcher.submit(bytes(images * 784))
        with pytest.raises(InferenceFailed):
            await batcher.submit(b"\1" * 784)
        await batcher.submit(bytes(784))
        await batcher.submit(bytes(784))
    here = [thread is threading.current_thread() for _, thread in sleeper.runs]
    assert here == [False, True, False, True, True, False, True]  # of the first, and after a failure, nothing is known


async def test_while_runs_are_done_on_the_event_loop_others_have_their_turn(metrics: Metrics) -> None:
    sleeper = Sleeper(0.0001)
    async with asleep(sleeper, metrics, max_batch_size=10, brief_seconds=TIMEOUT) as batcher:
        await batcher.submit(bytes(784))
        bulk = asyncio.create_task(batcher.submit(bytes(500 * 784)))
        await asyncio.sleep(0)
        await batcher.submit(bytes(784))
        assert len(sleeper.runs) < 10  # of the fifty that the bulk takes
        await bulk


async def test_a_caller_who_comes_as_soon_as_an_answer_is_out_is_not_taken_for_a_lone_one(metrics: Metrics) -> None:
    async with asleep(Sleeper(0.05), metrics, brief_seconds=TIMEOUT) as batcher:
        await batcher.submit(bytes(784))
        await batcher.submit(bytes(784))
        third = asyncio.create_task(batcher.submit(bytes(784)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert value(metrics.registry, "digits_queue_length_images") == 1
        await third


async def test_it_is_not_idle_between_the_queue_and_a_run(start: StartBatcher, gated: GatedModel, images: Images) -> None:
    batcher = start(max_queue_delay_seconds=0.1)  # for somebody to begin to wait before the run begins
    running = submit(batcher, images[:1])
    await asyncio.sleep(0)
    idle = asyncio.create_task(batcher.idle.wait())
    await gated.run_starts()
    await asyncio.sleep(0.05)
    assert not idle.done()
    gated.open()
    await running
    await asyncio.wait_for(idle, TIMEOUT)


async def test_what_waits_while_a_run_goes_on_is_the_next_batch(
    start: StartBatcher, gated: GatedModel, model: Model, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    first = submit(batcher, images[:1])
    await gated.run_starts()
    others = [submit(batcher, images[n : n + 1]) for n in range(1, 21)]
    await until_waiting(metrics, 20)
    gated.open()
    answers = np.concatenate(await asyncio.gather(first, *others))
    np.testing.assert_allclose(answers, model.predict(images[:21]), atol=1e-5)
    assert [len(batch) for batch in gated.batches] == [1, 20]
    assert value(metrics.registry, "digits_batch_size_images_sum") == 21
    assert value(metrics.registry, "digits_batch_size_images_count") == 2


async def test_a_large_request_is_cut_into_batches_and_answered_in_order(
    start: StartBatcher, gated: GatedModel, model: Model, images: Images
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
    assert (gated.batches[1] == 0).all(axis=(1, 2)).sum() == 16, "two bulk requests should get half a batch of 32 each"


@pytest.mark.parametrize(("max_batch_size", "runs"), [(40, [1, 40, 5]), (43, [1, 40, 5]), (45, [1, 45])])
async def test_a_small_request_is_not_torn_over_two_batches(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images, max_batch_size: int, runs: list[int]
) -> None:
    batcher = start(max_batch_size=max_batch_size)
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    fields = [submit(batcher, images[5 * n : 5 * n + 5]) for n in range(9)]
    await until_waiting(metrics, 45)
    gated.open()
    await asyncio.gather(blocker, *fields)
    assert [len(batch) for batch in gated.batches] == runs


async def test_bulk_requests_leave_no_room_in_a_batch(
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


@pytest.mark.parametrize("size", [0, 783, 785])
async def test_what_is_no_whole_number_of_images_is_refused_and_blocks_nobody(
    start: StartBatcher, gated: GatedModel, images: Images, size: int
) -> None:
    gated.open()
    batcher = start()
    with pytest.raises(ValueError, match=f"{size} bytes"):
        await batcher.submit(bytes(size))
    assert len(await submit(batcher, images[:1])) == 1


async def test_a_cancelled_caller_is_not_run_and_does_not_hurt_the_others(
    start: StartBatcher, gated: GatedModel, model: Model, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    first = submit(batcher, images[:1])
    await gated.run_starts()
    leaving, staying = submit(batcher, images[1:6]), submit(batcher, images[6:8])
    await until_waiting(metrics, 7)
    leaving.cancel()
    await until_waiting(metrics, 2)
    gated.open()
    np.testing.assert_allclose(await staying, model.predict(images[6:8]), atol=1e-5)
    await first
    assert [len(batch) for batch in gated.batches] == [1, 2]


async def test_a_caller_that_leaves_while_its_batch_runs_does_not_hurt_the_others(
    start: StartBatcher, gated: GatedModel, model: Model, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    leaving, staying = submit(batcher, images[1:2]), submit(batcher, images[2:3])
    await until_waiting(metrics, 2)
    gated.open(1)
    await gated.run_starts()
    leaving.cancel()
    gated.open()
    np.testing.assert_allclose(await staying, model.predict(images[2:3]), atol=1e-5)
    await blocker


async def test_an_error_of_the_model_reaches_every_caller_of_the_batch_and_the_loop_lives(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    white = np.full((1, 28, 28), 255, np.uint8)
    doomed = [submit(batcher, white), *(submit(batcher, images[n : n + 1]) for n in range(5))]
    await until_waiting(metrics, 6)
    gated.open()
    await blocker
    for outcome in await asyncio.gather(*doomed, return_exceptions=True):
        assert isinstance(outcome, InferenceFailed)
    assert len(await submit(batcher, images[:3])) == 3


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
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


async def test_a_request_that_would_be_late_behind_those_that_wait_is_refused_at_once(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    slow = submit(batcher, images[:1])
    await gated.run_starts()
    await asyncio.sleep(0.05)  # what an image takes, as far as the batcher has seen
    gated.open(1)
    await slow
    running = submit(batcher, images[:1])
    await gated.run_starts()
    alone = submit(batcher, images[:1], deadline=time.monotonic() + 0.2)  # behind nothing but the run: it may be in time
    await until_waiting(metrics, 1)
    waiting = submit(batcher, images[:19])
    await until_waiting(metrics, 20)
    with pytest.raises(
        QueueFull, match="20 images wait, and 1 more would hardly be answered within their deadline"
    ) as refusal:
        await batcher.submit(images[:1].tobytes(), time.monotonic() + 0.2)
    assert (refusal.value.retry_after_seconds or 0) > 0
    patient = submit(batcher, images[:1], deadline=time.monotonic() + TIMEOUT)
    gated.open()
    await asyncio.gather(running, waiting, patient)
    await asyncio.gather(alone, return_exceptions=True)
    assert sum(len(batch) for batch in gated.batches) in (1 + 1 + 19 + 1, 1 + 1 + 19 + 1 + 1)


async def test_time_without_work_is_not_taken_for_time_that_images_need(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start()
    gated.open(30)
    for _ in range(30):  # it knows how quick it is
        await submit(batcher, images[:1])
        await gated.run_starts()
    running = submit(batcher, images[:1])
    await gated.run_starts()
    late = submit(batcher, images[:1], deadline=time.monotonic() + 0.01)
    await until_waiting(metrics, 1)
    await asyncio.sleep(0.02)
    gated.open()
    await asyncio.gather(running, late, return_exceptions=True)
    await asyncio.sleep(1)  # nothing is asked
    await submit(batcher, images[:1])
    waiting = [submit(batcher, images[:1], deadline=time.monotonic() + 3) for _ in range(16)]
    assert len(await asyncio.gather(*waiting)) == 16


async def test_a_request_whose_deadline_passes_while_it_waits_is_never_run(
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


async def test_a_request_whose_deadline_passes_while_it_runs_is_not_answered(
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


async def test_closing_answers_what_waits_and_takes_nothing_more(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    batcher = start(instances=2)
    taken = [submit(batcher, images[n : n + 30]) for n in range(0, 300, 30)]
    await gated.run_starts()
    closing = asyncio.create_task(batcher.close(TIMEOUT))
    await asyncio.sleep(0)
    with pytest.raises(Stopping):
        await batcher.submit(images[:1].tobytes())
    gated.open()
    assert sum(len(answer) for answer in await asyncio.gather(*taken)) == 300
    await closing


async def test_closing_does_not_wait_for_a_run_that_hangs_and_leaves_no_caller_without_an_end(
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


async def turns(count: int) -> None:
    """Lets the event loop turn so often: far longer than it takes for requests that come together to meet."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("instances", [1, 2])
async def test_a_queue_delay_waits_for_a_batch_to_fill_and_no_longer(
    start: StartBatcher, gated: GatedModel, images: Images, instances: int
) -> None:
    gated.open()
    batcher = start(instances=instances, max_batch_size=4, max_queue_delay_seconds=10 * TIMEOUT)
    requests = []
    for n in range(8):
        requests.append(submit(batcher, images[n : n + 1]))
        await turns(100)
    await asyncio.wait_for(asyncio.gather(*requests), TIMEOUT)
    assert [len(batch) for batch in gated.batches] == [4, 4]


async def test_a_queue_delay_ends_with_what_there_is(start: StartBatcher, gated: GatedModel, images: Images) -> None:
    gated.open()
    batcher = start(max_queue_delay_seconds=0.2)
    first = submit(batcher, images[:1])
    await turns(100)
    assert not gated.batches
    second = submit(batcher, images[1:2])
    await asyncio.wait_for(asyncio.gather(first, second), TIMEOUT)
    assert [len(batch) for batch in gated.batches] == [2]


async def test_a_queue_delay_counts_from_the_arrival_of_the_oldest(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, images: Images
) -> None:
    delay = 1.0
    batcher = start(max_queue_delay_seconds=delay)
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    waiting = submit(batcher, images[1:2])
    await asyncio.sleep(delay)  # it has now waited long enough, behind the run
    gated.open()
    await asyncio.wait_for(asyncio.gather(blocker, waiting), 0.9 * delay)
    assert [len(batch) for batch in gated.batches] == [1, 1]
