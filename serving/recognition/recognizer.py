"""The way from images to what they show, for every front end alike."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, InvalidRequest, QueueFull, Stopping
from serving.inference.batch import Answer
from serving.inference.classifier import DIGIT, LOGITS, PROBABILITIES
from serving.recognition.crop_queue import Framer
from serving.repository.catalog import Catalog, Loaded
from serving.telemetry.metrics import Metrics

T = TypeVar("T")


class Reading(NamedTuple):
    """What n images show.

    Attributes:
        rows: (n, 23) float32, as Classifier.infer gives them.
        digits: the most probable of each.
        confidences: its probability.
        inked: whether there is any ink on the image.
        pixels: the images, 784 bytes each, as the network saw them.
        troubles: why crops can't be read, by their place.
        loaded: the version that answered.
    """

    rows: NDArray[np.float32]
    digits: list[int]
    confidences: list[float]
    inked: list[bool]
    pixels: bytes
    troubles: dict[int, str]
    loaded: Loaded

    @property
    def logits(self) -> NDArray[np.float32]:
        """(n, 10)."""
        return self.rows[:, LOGITS]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(n, 10), calibrated."""
        return self.rows[:, PROBABILITIES]

    @property
    def images(self) -> NDArray[np.uint8]:
        """(n, 784)."""
        return np.frombuffer(self.pixels, np.uint8).reshape(-1, IMAGE_BYTES)


class Recognizer:
    """Frames crops, routes images to a version of a model, and lets the shadow have them too."""

    def __init__(self, catalog: Catalog, metrics: Metrics, max_images_per_request: int, max_queue_size: int):
        self._catalog = catalog
        self._max_images_per_request = max_images_per_request
        self._framer = Framer(max_queue_size, metrics)

    async def read(
        self,
        pixels: bytes,
        call: Call,
        *,
        crops: Sequence[bytes] = (),
        each_by_itself: bool = False,
        model: str = "",
        version: str = "",
        key: str = "",
        timeout_seconds: float = 0.0,
    ) -> Reading:
        """Reads n images of 784 bytes, one after the other, or n crops.

        Args:
            pixels: the images.
            call: what brought them.
            crops: PNG or JPEG files, in the place of `pixels`.
            each_by_itself: a crop that can't be read is rejected, and the others answered; otherwise the request ends.
            model: its name; the default one when empty.
            version: of the model; by its routing when empty.
            key: with the same key, the same version answers as long as the routing stays.
            timeout_seconds: how long it may take, where the request itself says so; 0 where only its call has a deadline.

        Raises:
            RequestError: they can't be read; errors.py has the reasons.
        """
        call.images = self._count(pixels, crops)
        loaded = self._catalog.route(model, version, key)
        call.model, call.version = loaded.name, loaded.version
        answering = self._answer(loaded, pixels, list(crops), each_by_itself, call)
        pixels, troubles, answer = await _in_time(answering, call, timeout_seconds)
        if call.span is not None:
            times = (answer.arrived, answer.started, answer.ended)
            call.span.answered(*times, model=loaded.name, version=loaded.version, images=call.images)
        # Lists: of a single image, as most are, an operation of NumPy's costs more than all that is in it.
        digits, confidences, inked = answer.rows[:, DIGIT:].T.tolist()
        reading = Reading(
            answer.rows, [int(digit) for digit in digits], confidences, [ink > 0 for ink in inked], pixels, troubles, loaded
        )
        if loaded.shadow and any(reading.inked):
            seen = np.array(reading.inked)  # what is said of blank images means nothing
            loaded.shadow.compare(reading.images[seen].tobytes(), np.array(digits, np.intp)[seen])
        return reading

    async def close(self, grace_seconds: float) -> None:
        """Takes no more crops, and waits that long for those on their way."""
        await self._framer.close(grace_seconds)

    def _count(self, pixels: bytes, crops: Sequence[bytes]) -> int:
        """How many images there are. Raises InvalidRequest when they are none, too many, or not whole."""
        if pixels and crops:
            raise InvalidRequest("there are images and crops: expected one of the two")
        count, rest = (len(crops), 0) if crops else divmod(len(pixels), IMAGE_BYTES)
        if rest or not count:
            raise InvalidRequest(
                f"images is {len(pixels)} bytes, expected a multiple of {IMAGE_BYTES} (28 rows of 28 pixels an "
                "image), and at least one image"
            )
        if count > self._max_images_per_request:
            what = "crops" if crops else "images"
            raise InvalidRequest(f"{what} holds {count} images, this server takes {self._max_images_per_request} a call")
        return count

    async def _answer(
        self, loaded: Loaded, pixels: bytes, crops: list[bytes], each_by_itself: bool, call: Call
    ) -> tuple[bytes, dict[int, str], Answer]:
        """Has images read at their client's expense, who pays for none that a queue doesn't take.

        Returns:
            The images as they were read, why crops could not be, and what the model said.
        """
        troubles: dict[int, str] = {}
        if call.client:
            call.client.spend(call.images)
        try:
            if crops:
                pixels, troubles = await self._framer.frame(crops, call.deadline)
                if troubles and not each_by_itself:
                    place, trouble = next(iter(troubles.items()))
                    raise InvalidRequest(f"crop {place} can't be read: {trouble}" if len(crops) > 1 else f"crop: {trouble}")
            return pixels, troubles, await loaded.batcher.submit(pixels, call.deadline)
        except (QueueFull, Stopping):
            if call.client:
                call.client.give_back(call.images)
            raise


async def _in_time(work: Awaitable[T], call: Call, timeout_seconds: float) -> T:
    """Waits for `work` as long as the request itself allows."""
    if not timeout_seconds:  # gRPC itself ends a call whose deadline passes
        return await work
    call.deadline = min(call.deadline, time.monotonic() + timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await work
    except TimeoutError:
        raise DeadlineExceeded("the request's timeout passed before its answer was ready") from None
