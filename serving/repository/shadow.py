"""Shadow version: reads the images that stable has answered, and is compared with stable in the metrics."""

import asyncio
import logging
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context

import numpy as np
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES
from serving.inference.classifier import BLANK, DIGIT, ONE_DIGIT, SHOWS, Classifier
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

# Bounds the memory of a slow shadow, which skips new images while this many runs wait. One request alone may exceed it.
_MAX_RUNS_WAITING = 8


class Shadow:
    """Compares a version with stable, on a thread of the lowest priority, while no image waits for an answer.

    Attributes:
        version: version number, as a decimal string.
        model: model that is compared with stable.
    """

    def __init__(
        self, model: Classifier, metrics: Metrics, name: str, version: str, *, max_batch_size: int, idle: asyncio.Event
    ):
        """Starts on the running event loop.

        Args:
            model: model to compare with stable.
            metrics: counts agreement with stable.
            name: name of the model.
            version: version number, as a decimal string.
            max_batch_size: most images in one run.
            idle: set while no image waits for an answer.
        """
        self.version = version
        self.model = model
        self._idle = idle
        self._max_batch_size = max_batch_size
        self._agreed, self._disagreed, self._failed, self._skipped = (
            metrics.shadow_images.labels(name, version, outcome) for outcome in ("agreed", "disagreed", "failed", "skipped")
        )
        self._waiting: deque[tuple[memoryview, NDArray[np.uint8]]] = deque()
        self._images_waiting = 0
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=_lower_priority)
        # An empty context: its log lines must not carry the ids of a traced call that loads the model.
        self._runner = asyncio.create_task(self._compare_all(), context=Context())

    def compare(self, pixels: bytes, answers: NDArray[np.uint8]) -> None:
        """Queues images for comparison, or skips them if the shadow is too far behind.

        Args:
            pixels: n images, 784 bytes each.
            answers: (n, 2) stable's columns DIGIT and SHOWS of the classifier.
        """
        if self._images_waiting and self._images_waiting + len(answers) > _MAX_RUNS_WAITING * self._max_batch_size:
            self._skipped.inc(len(answers))
            return
        self._waiting.append((memoryview(pixels), answers))
        self._images_waiting += len(answers)
        self._work.set()

    def compare_decided(self, pixels: bytes, answers: NDArray[np.uint8]) -> None:
        """Queues images like `compare`, except blank ones, on which no model decides."""
        decided = answers[:, 1] != BLANK
        if decided.any():
            images = np.frombuffer(pixels, np.uint8).reshape(-1, IMAGE_BYTES)[decided]
            self.compare(images.tobytes(), answers[decided])

    def stop(self) -> None:
        """Stops comparing, and drops the images that wait."""
        self._runner.cancel()
        self._thread.shutdown(wait=False)

    async def _compare_all(self) -> None:
        while True:
            await self._work.wait()
            await self._idle.wait()
            pixels, answers = self._next_batch()
            images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
            try:
                event_loop = asyncio.get_running_loop()
                rows = await event_loop.run_in_executor(self._thread, self.model.classify, images)
            except Exception:
                message = f"shadow version {self.version} failed on a run of {len(images)} images"
                log_event(log, logging.ERROR, "shadow_failed", message, exc_info=True, version=self.version)
                self._failed.inc(len(images))
                continue
            finite = np.isfinite(rows).all(axis=1)
            same_digit, same_kind = (rows[:, [DIGIT, SHOWS]] == answers).T
            same = same_kind & (same_digit | (rows[:, SHOWS] != ONE_DIGIT))  # the digit of what is not one means nothing
            agreed = int((finite & same).sum())
            self._agreed.inc(agreed)
            self._disagreed.inc(int(finite.sum()) - agreed)
            self._failed.inc(len(rows) - int(finite.sum()))

    def _next_batch(self) -> tuple[bytes, NDArray[np.uint8]]:
        """Takes up to one batch off the queue: pixels of n images, and stable's answers, (n, 2)."""
        pixels: list[memoryview] = []
        answers: list[NDArray[np.uint8]] = []
        room = self._max_batch_size
        while self._waiting and room:
            images, stable = self._waiting.popleft()
            size = min(room, len(stable))
            pixels.append(images[: size * IMAGE_BYTES])
            answers.append(stable[:size])
            if size < len(stable):
                self._waiting.appendleft((images[size * IMAGE_BYTES :], stable[size:]))
            room -= size
        self._images_waiting -= self._max_batch_size - room
        if not self._waiting:
            self._work.clear()
        return b"".join(pixels), np.concatenate(answers)


def _lower_priority() -> None:
    """Gives this thread the lowest priority; on Linux, niceness belongs to a thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
