"""Shares of the queue: of clients and connections, and of the two priorities."""

import asyncio
import time
from collections import Counter

import numpy as np
import pytest

from serving.errors import QueueFull
from serving.inference.batcher import Batcher
from serving.telemetry.metrics import Metrics
from tests.inference.requests import Images, StartBatcher, submit, until_waiting
from tests.support.calls import TIMEOUT
from tests.support.metrics import value
from tests.support.models import GatedModel

GREEDY, POLITE = "ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1"


def marked(level: int, count: int) -> Images:
    """Returns images of one level of grey, which `levels` finds in the batches."""
    return np.full((count, 28, 28), level, np.uint8)


def levels(batch: Images) -> Counter[int]:
    return Counter(batch[:, 0, 0].tolist())


async def busy(start: StartBatcher, gated: GatedModel, **settings: int) -> tuple[Batcher, asyncio.Task[object]]:
    """Starts a batcher whose only runner is at work, so that further requests wait. Its pace is 10 ms an image."""
    batcher = start(**settings)
    first = submit(batcher, marked(1, 1))
    await gated.run_starts()
    gated.open(1)
    await first
    batcher._pace.seconds_per_image = 0.01  # what it has learned depends on the machine
    running = submit(batcher, marked(1, 1))
    await gated.run_starts()
    return batcher, running


@pytest.mark.parametrize("connections", [1, 20], ids=["one-connection", "many-connections"])
async def test_a_client_with_many_requests_gets_no_more_of_a_batch_than_another(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, connections: int
) -> None:
    batcher, running = await busy(start, gated)
    greedy = [submit(batcher, marked(5, 20), peer=f"ipv4:10.0.0.1:{place % connections}") for place in range(20)]
    polite = submit(batcher, marked(7, 40), peer=POLITE)
    await until_waiting(metrics, 440)
    gated.open()
    await asyncio.gather(running, polite, *greedy)
    assert levels(gated.batches[2]) == {5: 16, 7: 16}
    assert 7 not in levels(np.concatenate(gated.batches[6:])), "forty of each have been read in five batches"


@pytest.mark.parametrize("peer", [POLITE, "ipv4:10.0.0.1:999"], ids=["another-client", "another-connection"])
async def test_a_single_image_is_in_the_next_batch_whatever_others_have_waiting(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, peer: str
) -> None:
    batcher, running = await busy(start, gated, max_queue_size=10_000)
    greedy = [submit(batcher, marked(5, 100), peer=f"ipv4:10.0.0.1:{port}") for port in range(50)]
    await until_waiting(metrics, 5000)
    gated.open(7)  # each of the fifty has had a turn
    for _ in range(7):
        await gated.run_starts()
    for _ in range(5):
        waiting = value(metrics.registry, "digits_queue_length_images")
        polite = submit(batcher, marked(7, 1), peer=peer)
        await until_waiting(metrics, int(waiting) + 1)
        gated.open(1)
        await gated.run_starts()
        assert levels(gated.batches[-1])[7] == 1
    gated.open()
    await asyncio.gather(running, polite, *greedy)


async def test_a_single_image_is_admitted_beside_bulk_where_its_turn_comes_in_time(
    start: StartBatcher, gated: GatedModel, metrics: Metrics
) -> None:
    batcher, running = await busy(start, gated)
    greedy = [submit(batcher, marked(5, 100), peer=GREEDY) for _ in range(9)]
    await until_waiting(metrics, 900)  # more than 9 s at this pace
    deadline = time.monotonic() + 3  # its batch takes 0.3 s
    with pytest.raises(QueueFull, match="900 images wait, and 1 more would hardly be answered"):
        await batcher.submit(bytes(784), time.monotonic() + 0.1)
    with pytest.raises(QueueFull, match="900 images wait, and 32 more would hardly be answered"):
        await submit(batcher, marked(5, 32), time.monotonic() + 1, peer=GREEDY)
    polite = submit(batcher, marked(7, 1), deadline, peer=POLITE)
    await until_waiting(metrics, 901)
    gated.open()
    await asyncio.gather(running, polite, *greedy)


async def test_a_full_queue_takes_in_a_client_with_less_at_the_cost_of_the_one_with_most(
    start: StartBatcher, gated: GatedModel, metrics: Metrics
) -> None:
    batcher, running = await busy(start, gated, max_queue_size=100)
    greedy = [submit(batcher, marked(5, 20), peer=GREEDY) for _ in range(5)]
    await until_waiting(metrics, 100)
    with pytest.raises(QueueFull, match="the queue is full: 100 images wait, and 1 more would pass its limit of 100"):
        await submit(batcher, marked(5, 1), peer=GREEDY)
    polite = [submit(batcher, marked(7, 15), peer=peer) for peer in (POLITE, "ipv4:10.0.0.1:2")]
    await until_waiting(metrics, 90)
    gated.open()
    outcomes = await asyncio.gather(running, *polite, *greedy, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [str(error) for error in refused] == ["the queue is full, and other clients have fewer images in it"] * 2
    assert outcomes[-2:] == refused, "the newest"
    assert all((getattr(error, "retry_after_seconds", 0) or 0) > 0 for error in refused)


@pytest.mark.parametrize(("batch", "reason"), [(False, "queue_full"), (True, "batch_queue_full")])
async def test_a_full_queue_is_counted_by_priority(
    start: StartBatcher, gated: GatedModel, metrics: Metrics, batch: bool, reason: str
) -> None:
    batcher, running = await busy(start, gated, max_queue_size=100)
    greedy = [submit(batcher, marked(5, 50), peer=GREEDY, batch=batch) for _ in range(2)]
    await until_waiting(metrics, *((0, 100) if batch else (100, 0)))
    with pytest.raises(QueueFull) as refused:
        await submit(batcher, marked(5, 1), peer=GREEDY, batch=batch)
    assert refused.value.reason == reason
    with pytest.raises(QueueFull) as late:
        await submit(batcher, marked(5, 1), time.monotonic() + 0.01, peer=GREEDY, batch=batch)
    assert late.value.reason == reason
    polite = submit(batcher, marked(7, 1), peer=POLITE, batch=batch)
    gated.open()
    outcomes = await asyncio.gather(running, polite, *greedy, return_exceptions=True)
    assert [getattr(outcome, "reason", "") for outcome in outcomes] == ["", "", "", reason], "the newest gave way"


async def test_nobody_loses_a_place_to_a_request_that_would_not_fit_then(
    start: StartBatcher, gated: GatedModel, metrics: Metrics
) -> None:
    batcher, running = await busy(start, gated, max_queue_size=100)
    waiting = [submit(batcher, marked(5, 50), peer=f"ipv4:10.0.0.{host}:1") for host in (1, 2)]
    await until_waiting(metrics, 100)
    for images in (50, 101):
        with pytest.raises(QueueFull, match=f"100 images wait, and {images} more would pass its limit of 100"):
            await submit(batcher, marked(7, images), peer="ipv4:10.0.0.3:1")
    gated.open()
    await asyncio.gather(running, *waiting)


async def test_live_images_are_read_before_batch_ones_which_get_a_sixteenth(
    start: StartBatcher, gated: GatedModel, metrics: Metrics
) -> None:
    batcher, running = await busy(start, gated)
    batch = submit(batcher, marked(5, 600), batch=True)
    live = [submit(batcher, marked(7, 100)) for _ in range(4)]
    await until_waiting(metrics, 400, batch=600)
    gated.open()
    await asyncio.gather(running, batch, *live)
    both = [levels(one) for one in gated.batches[2:] if 7 in levels(one)]
    assert sum(one[5] for one in both[:-1]) in range(16, 33), "of fourteen batches of 32"
    assert [len(one) for one in gated.batches[2:-1]] == [32] * (len(gated.batches) - 3), "batch gets what live leaves"


async def test_a_batch_of_one_image_reads_every_sixteenth_of_priority_batch(
    start: StartBatcher, gated: GatedModel, metrics: Metrics
) -> None:
    batcher, running = await busy(start, gated, max_batch_size=1)
    batch = submit(batcher, marked(5, 10), batch=True)
    live = submit(batcher, marked(7, 64))
    await until_waiting(metrics, 64, batch=10)
    gated.open()
    await asyncio.gather(running, batch, live)
    while_both = [one[0, 0, 0] for one in gated.batches[2:66]]
    assert Counter(while_both) == {7: 60, 5: 4}


async def test_each_priority_has_a_queue_limit_of_its_own(start: StartBatcher, gated: GatedModel, metrics: Metrics) -> None:
    batcher, running = await busy(start, gated, max_queue_size=100)
    batch = submit(batcher, marked(5, 100), batch=True)
    await until_waiting(metrics, 0, batch=100)
    with pytest.raises(QueueFull, match="100 images wait"):
        await submit(batcher, marked(5, 1), batch=True)
    live = submit(batcher, marked(7, 100))
    await until_waiting(metrics, 100, batch=100)
    with pytest.raises(QueueFull, match="100 images wait"):
        await submit(batcher, marked(7, 1))
    batch.cancel()
    await until_waiting(metrics, 100)
    gated.open()
    await asyncio.gather(running, live)
    assert value(metrics.registry, "digits_batch_queue_length_images") == 0


async def test_batch_images_do_not_make_live_ones_late_and_wait_for_them(
    start: StartBatcher, gated: GatedModel, metrics: Metrics
) -> None:
    batcher, running = await busy(start, gated)
    batch = submit(batcher, marked(5, 900), batch=True)
    await until_waiting(metrics, 0, batch=900)
    live = [submit(batcher, marked(7, 100), time.monotonic() + TIMEOUT)]
    live.append(submit(batcher, marked(7, 1), time.monotonic() + 3))
    await until_waiting(metrics, 101, batch=900)
    with pytest.raises(QueueFull):
        await submit(batcher, marked(5, 1), time.monotonic() + 1, peer=POLITE, batch=True)
    gated.open()
    await asyncio.gather(running, batch, *live)


async def test_a_batch_request_whose_turns_come_in_time_waits_beside_a_live_backlog(
    start: StartBatcher, gated: GatedModel, metrics: Metrics
) -> None:
    batcher, running = await busy(start, gated)
    live = submit(batcher, marked(7, 900))
    await until_waiting(metrics, 900)  # more than 9 s at this pace
    batch = submit(batcher, marked(5, 1), time.monotonic() + 3, batch=True)
    await until_waiting(metrics, 900, batch=1)
    gated.open()
    await asyncio.gather(running, live, batch)
    assert 5 in levels(gated.batches[2]), "its turn comes after fifteen live images and the rest of a turn"
