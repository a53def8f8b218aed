"""Requests to a batcher."""

import asyncio
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from serving.call import Call
from serving.inference.batcher import Batcher
from serving.inference.classifier import PROBABILITIES
from serving.telemetry.metrics import Metrics
from tests.support.metrics import until

Images = NDArray[np.uint8]
StartBatcher = Callable[..., Batcher]


def submit(
    batcher: Batcher, images: Images, deadline: float = math.inf, peer: str = "", *, batch: bool = False
) -> asyncio.Task[NDArray[np.float32]]:
    """Submits images of a caller in a task, which returns their probabilities, (n, 10)."""

    async def probabilities() -> NDArray[np.float32]:
        answer = await batcher.submit(images.tobytes(), deadline, Call(peer=lambda: peer), batch=batch)
        return answer.rows[:, PROBABILITIES]

    return asyncio.create_task(probabilities())


async def until_waiting(metrics: Metrics, images: int, batch: int = 0) -> None:
    """Waits until this number of images is in the queue: live ones, and ones of priority batch."""
    await until(metrics.registry, "digits_queue_length_images", images)
    await until(metrics.registry, "digits_batch_queue_length_images", batch)
