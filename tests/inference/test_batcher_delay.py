import asyncio

import pytest

from tests.inference.requests import Images, StartBatcher, submit
from tests.support.calls import TIMEOUT
from tests.support.event_loop import turns
from tests.support.models import GatedModel


@pytest.mark.parametrize("instances", [1, 2])
async def test_a_queue_delay_ends_as_soon_as_a_batch_is_full(
    start: StartBatcher, gated: GatedModel, images: Images, instances: int
) -> None:
    gated.open()
    batcher = start(instances=instances, max_batch_size=4, max_queue_delay_seconds=10 * TIMEOUT)
    requests = []
    for index in range(8):
        requests.append(submit(batcher, images[index : index + 1]))
        await turns(100)
    await asyncio.wait_for(asyncio.gather(*requests), TIMEOUT)
    assert [len(batch) for batch in gated.batches] == [4, 4]


async def test_a_queue_delay_that_passes_runs_the_requests_that_wait(
    start: StartBatcher, gated: GatedModel, images: Images
) -> None:
    gated.open()
    batcher = start(max_queue_delay_seconds=0.2)
    first = submit(batcher, images[:1])
    await turns(100)
    assert not gated.batches
    second = submit(batcher, images[1:2])
    await asyncio.wait_for(asyncio.gather(first, second), TIMEOUT)
    assert [len(batch) for batch in gated.batches] == [2]


async def test_a_queue_delay_counts_from_the_arrival_of_the_oldest_request(
    start: StartBatcher, gated: GatedModel, images: Images
) -> None:
    delay = 1.0
    batcher = start(max_queue_delay_seconds=delay)
    blocker = submit(batcher, images[:1])
    await gated.run_starts()
    waiting = submit(batcher, images[1:2])
    await asyncio.sleep(delay)  # the delay of the waiting request passes behind the run
    gated.open()
    await asyncio.wait_for(asyncio.gather(blocker, waiting), 0.9 * delay)
    assert [len(batch) for batch in gated.batches] == [1, 1]
