"""Recognizes images: checks and routes them, has them read, and has the answer decided. One call for every front."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import numpy as np

from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, InvalidRequest, ModelNotReady, QueueFull, Stopping, UnknownModel
from serving.inference.classifier import (
    BLANK,
    CONFIDENCE,
    DIGIT,
    LOGITS,
    NOT_ONE_DIGIT,
    ONE_DIGIT,
    PROBABILITIES,
    SHOWS,
    WHOLE,
)
from serving.inference.entry import SingleImage
from serving.recognition.call_group import CallGroup, SingleRequest
from serving.recognition.crop_queue import CropQueue, FramedCrops
from serving.recognition.policy import Policy
from serving.recognition.reading import DigitAnswers, FieldAnswer, Images, Reading, ReadOptions
from serving.repository.catalog import Catalog
from serving.telemetry.metrics import Metrics

T = TypeVar("T")

# Callers choose error rates and outputs freely. Beyond this number, the groups are prepared again when calls need them.
_MAX_GROUPS = 256


class Recognizer:
    """Recognizes the images of requests. Validation comes first, then routing, then the client's rate limit."""

    def __init__(self, catalog: Catalog, policy: Policy, metrics: Metrics, max_images_per_request: int, max_queue_size: int):
        """Starts the crop queue.

        Args:
            catalog: routes requests to model versions.
            policy: decides on the readings.
            metrics: counts crops.
            max_images_per_request: images in one request, at most.
            max_queue_size: crops that may wait to be framed, at most.
        """
        self._catalog = catalog
        self._policy = policy
        self._max_images_per_request = max_images_per_request
        self._crops = CropQueue(max_queue_size, metrics)

    async def recognize(self, images: Images, options: ReadOptions, call: Call) -> DigitAnswers:
        """Recognizes n digits and decides on each.

        Raises:
            RequestError: there is no answer; errors.py lists the reasons.
        """
        reading = await self.infer(images, options, call)
        verdict = await self._policy.decide_digits(reading, options.target_error_rate, call.deadline, audit=options.audit)
        return DigitAnswers(reading, verdict)

    async def read_field(self, images: Images, options: ReadOptions, call: Call) -> FieldAnswer:
        """Recognizes the n digits of one field and decides on the field as a whole.

        Raises:
            RequestError: there is no answer; errors.py lists the reasons.
        """
        lexicon = self._policy.lexicon(options.lexicon)
        reading = await self.infer(images, options, call)
        return await self._policy.decide_field(reading, options.target_error_rate, call.deadline, lexicon)

    def enter(self, request: SingleRequest, image: SingleImage) -> None:
        """Has the image of a call read, and the call answered together with others of its run.

        Raises:
            RequestError: there is no answer; errors.py lists the reasons. The call has not ended then.
        """
        options, call = request.options, image.call
        call.images = 1
        _require_target(options)
        loaded = self._catalog.route(options.model, options.version, options.key)
        call.model, call.version = loaded.name, loaded.version
        threshold = self._policy.threshold(loaded, options.target_error_rate)
        shared = image.outcomes, request.form, threshold
        group = loaded.groups.get(shared)
        if group is None:
            if len(loaded.groups) == _MAX_GROUPS:
                loaded.groups.clear()
            group = loaded.groups[shared] = CallGroup(loaded, threshold, request.form, self._policy)
        image.group = group
        if call.client:
            call.client.spend(1)
        if options.batch:
            image.batch = True
            loaded.metrics.batch_images.inc()
        try:
            loaded.batcher.enter(image)
        except (QueueFull, Stopping):
            if call.client:
                call.client.give_back(1)
            raise

    def infer(self, images: Images, options: ReadOptions, call: Call) -> Awaitable[Reading]:
        """Reads n images without a decision.

        Raises:
            RequestError: there is no answer; errors.py lists the reasons.
        """
        call.images = self._validate(images, options)
        reading = self._read(images, options, call)
        # Without a timeout of its own, a request ends with its call: gRPC ends a call whose deadline passes.
        return _limit(reading, options.timeout_seconds, call) if options.timeout_seconds else reading

    async def close(self, grace_seconds: float) -> None:
        """Refuses new crops and waits up to the grace for the queued ones."""
        await self._crops.close(grace_seconds)

    def _validate(self, images: Images, options: ReadOptions) -> int:
        """Returns the number of images. Raises InvalidRequest for none, too many, a part of one, or an impossible target."""
        pixels, crops = images
        if pixels and crops:
            raise InvalidRequest("there are images and crops: expected one of the two")
        count, rest = (len(crops), 0) if crops else divmod(len(pixels), IMAGE_BYTES)
        if rest or not count:
            raise InvalidRequest(
                f"images is {len(pixels)} bytes, expected a multiple of {IMAGE_BYTES} (28 rows of 28 pixels an "
                "image), and at least one image"
            )
        if count > self._max_images_per_request:
            kind = "crops" if crops else "images"
            raise InvalidRequest(f"{kind} holds {count} images, this server takes {self._max_images_per_request} a call")
        _require_target(options)
        return count

    async def _read(self, images: Images, options: ReadOptions, call: Call) -> Reading:
        """Routes, frames and reads images. The client's rate limit is not charged for images that the service sheds."""
        loaded = self._catalog.route(options.model, options.version, options.key)
        call.model, call.version = loaded.name, loaded.version
        pixels, crops = images
        framed = None
        if call.client:
            call.client.spend(call.images)
        try:
            if crops:
                framed = await self._frame(crops, options, call)
                pixels = framed.pixels
                # Another version may have taken over while the crops were framed, and the first one has closed. None may
                # be left, which is no fault of the client either.
                loaded = self._catalog.route(options.model, options.version, options.key)
                call.model, call.version = loaded.name, loaded.version
            if options.batch:
                loaded.metrics.batch_images.inc(call.images)
            answer = await loaded.batcher.submit(pixels, call.deadline, call, batch=options.batch)
        except (QueueFull, Stopping, UnknownModel, ModelNotReady):
            if call.client:
                call.client.give_back(call.images)
            raise
        if call.span is not None:
            times = (answer.arrived, answer.started, answer.ended)
            call.span.answered(*times, model=loaded.name, version=loaded.version, images=call.images)
        rows = answer.rows
        whole, shows = rows[:, WHOLE], rows[:, SHOWS].astype(np.uint8)
        if framed:  # what the framer doubts is not one digit, whatever the model says
            whole = whole * np.array(framed.whole, np.float32)
            shows = np.minimum(shows, np.where(framed.whole, ONE_DIGIT, NOT_ONE_DIGIT)).astype(np.uint8)
        reading = Reading(
            logits=rows[:, LOGITS],
            probabilities=rows[:, PROBABILITIES],
            digits=rows[:, DIGIT].astype(np.uint8),
            confidences=rows[:, CONFIDENCE],
            whole=whole,
            shows=shows,
            pixels=pixels,
            errors=framed.errors if framed else {},
            loaded=loaded,
        )
        if loaded.shadow:
            # What the framer doubts is no model's decision, and is left out like a blank image.
            compared = np.where(framed.whole, shows, BLANK).astype(np.uint8) if framed else shows
            loaded.shadow.compare_decided(pixels, np.stack([reading.digits, compared], axis=1))
        return reading

    async def _frame(self, crops: Sequence[bytes], options: ReadOptions, call: Call) -> FramedCrops:
        """Frames crops. Raises InvalidRequest for a crop that can't be decoded, unless the options take partial answers."""
        began = time.monotonic()
        framed = await self._crops.frame(crops, call.deadline, call, batch=options.batch)
        if call.span is not None:
            call.span.framed(began, time.monotonic(), len(crops))
        if framed.errors and not options.partial:
            index, error = next(iter(framed.errors.items()))
            raise InvalidRequest(f"crop {index} can't be read: {error}" if len(crops) > 1 else f"crop: {error}")
        return framed


def _require_target(options: ReadOptions) -> None:
    if not 0 <= options.target_error_rate < 1:  # NaN too
        raise InvalidRequest(f"target_error_rate is {options.target_error_rate}, expected a share below 1, or 0")


async def _limit(work: Awaitable[T], timeout_seconds: float, call: Call) -> T:
    """Awaits `work` within the request's own timeout, which also bounds the deadline of the call."""
    call.deadline = min(call.deadline, time.monotonic() + timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await work
    except TimeoutError:
        raise DeadlineExceeded("the request's timeout passed before its answer was ready") from None
