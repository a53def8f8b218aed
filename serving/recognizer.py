"""The way from images to what they show, for every front end alike."""

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.batcher import Answer
from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, InvalidRequest, QueueFull, Stopping
from serving.repository import Loaded, Repository


@dataclass(frozen=True, slots=True)
class Reading:
    """What n images show.

    Attributes:
        logits: (n, 10) float32.
        probabilities: (n, 10) float32, calibrated.
        digits: (n,), the most probable of each.
        confidences: (n,) float32, its probability.
        loaded: the version that answered.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    digits: NDArray[np.intp]
    confidences: NDArray[np.float32]
    loaded: Loaded


class Recognizer:
    """Routes images to a version of a model, counts what it says, and lets the shadow have them too."""

    def __init__(self, repository: Repository, max_images_per_request: int):
        self._repository = repository
        self._max_images_per_request = max_images_per_request

    async def read(
        self,
        pixels: bytes,
        call: Call,
        *,
        model: str = "",
        version: str = "",
        key: str = "",
        timeout_seconds: float = 0.0,
    ) -> Reading:
        """Reads n images of 784 bytes, one after the other.

        Args:
            pixels: the images.
            call: what brought them.
            model: its name; the default one when empty.
            version: of the model; by its routing when empty.
            key: with the same key, the same version answers as long as the routing stays.
            timeout_seconds: how long it may take, where the request itself says so; 0 where only its call has a deadline.

        Raises:
            RequestError: they can't be read; errors.py has the reasons.
        """
        count, rest = divmod(len(pixels), IMAGE_BYTES)
        if rest or not count:
            raise InvalidRequest(
                f"images is {len(pixels)} bytes, expected a multiple of {IMAGE_BYTES} (28 rows of 28 pixels an "
                "image), and at least one image"
            )
        if count > self._max_images_per_request:
            raise InvalidRequest(f"images holds {count} images, this server takes {self._max_images_per_request} a call")
        loaded = self._repository.route(model, version, key)
        call.model, call.version, call.images = loaded.name, loaded.version, count
        answer = await _submit(loaded, pixels, call, timeout_seconds)
        if call.span is not None:
            times = (answer.arrived, answer.started, answer.ended)
            call.span.answered(*times, model=loaded.name, version=loaded.version, images=count)
        logits, probabilities = answer.rows[:, :10], answer.rows[:, 10:]
        digits, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
        loaded.metrics.count_predictions(digits, confidences)
        if loaded.shadow:
            loaded.shadow.compare(pixels, digits)
        return Reading(logits, probabilities, digits, confidences, loaded)


async def _submit(loaded: Loaded, pixels: bytes, call: Call, timeout_seconds: float) -> Answer:
    """Has images read in time and at their client's expense, who pays for none that the queue doesn't take."""
    if not timeout_seconds:  # gRPC itself ends a call whose deadline passes
        return await _spend_and_submit(loaded, pixels, call)
    call.deadline = min(call.deadline, time.monotonic() + timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _spend_and_submit(loaded, pixels, call)
    except TimeoutError:
        raise DeadlineExceeded("the request's timeout passed before its answer was ready") from None


async def _spend_and_submit(loaded: Loaded, pixels: bytes, call: Call) -> Answer:
    if call.client is None:
        return await loaded.batcher.submit(pixels, call.deadline)
    call.client.spend(call.images)
    try:
        return await loaded.batcher.submit(pixels, call.deadline)
    except (QueueFull, Stopping):
        call.client.give_back(call.images)
        raise
