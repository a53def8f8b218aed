"""A version that reads what stable has read, is compared with it in the metrics, and never answers."""

import asyncio
import logging
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES
from serving.inference.classifier import PROBABILITIES, Classifier
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

# A shadow that is this many runs behind skips what comes, so that it holds no more images than that, or one request's.
_RUNS_BEHIND = 8


class Shadow:
    """Compares a version with stable: on a thread that gives way to all others, and while no image waits for an answer."""

    def __init__(
        self, model: Classifier, metrics: Metrics, name: str, version: str, *, max_batch_size: int, idle: asyncio.Event
    ):
        """Starts on the running event loop.

        Args:
            model: the version that is tried.
            metrics: where its agreement with stable is counted.
            name: of the model.
            version: of the model.
            max_batch_size: images in a run, at most.
            idle: set while no image waits for an answer.
        """
        self.version = version
        self.model = model
        self._idle = idle
        self._max_batch_size = max_batch_size
        self._agreed, self._disagreed, self._failed, self._skipped = (
            metrics.shadow_images.labels(name, version, outcome) for outcome in ("agreed", "disagreed", "failed", "skipped")
        )
        self._waiting: deque[tuple[memoryview, NDArray[np.intp]]] = deque()
        self._images = 0  # that wait
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=_give_way)
        self._runner = asyncio.create_task(self._compare_all())

    def compare(self, pixels: bytes, digits: NDArray[np.intp]) -> None:
        """Has the shadow read n images of 784 bytes too, some time, and compares with `digits`, (n,), what stable read."""
        if self._images and self._images + len(digits) > _RUNS_BEHIND * self._max_batch_size:
            self._skipped.inc(len(digits))
            return
        self._waiting.append((memoryview(pixels), digits))
        self._images += len(digits)
        self._work.set()

    def stop(self) -> None:
        """Compares no more."""
        self._runner.cancel()
        self._thread.shutdown(wait=False)

    async def _compare_all(self) -> None:
        while True:
            await self._work.wait()
            await self._idle.wait()
            pixels, digits = self._next_batch()
            images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
            try:
                event_loop = asyncio.get_running_loop()
                rows = await event_loop.run_in_executor(self._thread, self.model.infer, images)
            except Exception:
                message = f"shadow version {self.version} failed on a run of {len(images)} images"
                log_event(log, logging.ERROR, "shadow_failed", message, exc_info=True, version=self.version)
                self._failed.inc(len(images))
                continue
            finite = np.isfinite(rows).all(axis=1)
            agreed = int((finite & (rows[:, PROBABILITIES].argmax(axis=1) == digits)).sum())
            self._agreed.inc(agreed)
            self._disagreed.inc(int(finite.sum()) - agreed)
            self._failed.inc(len(rows) - int(finite.sum()))

    def _next_batch(self) -> tuple[bytes, NDArray[np.intp]]:
        """Takes up to a batch off what waits: the pixels of n images, and the (n,) digits that stable read in them."""
        pixels: list[memoryview] = []
        digits: list[NDArray[np.intp]] = []
        room = self._max_batch_size
        while self._waiting and room:
            images, read = self._waiting.popleft()
            size = min(room, len(read))
            pixels.append(images[: size * IMAGE_BYTES])
            digits.append(read[:size])
            if size < len(read):
                self._waiting.appendleft((images[size * IMAGE_BYTES :], read[size:]))
            room -= size
        self._images -= self._max_batch_size - room
        if not self._waiting:
            self._work.clear()
        return b"".join(pixels), np.concatenate(digits)


def _give_way() -> None:
    """Lets every other thread of the machine go first; on Linux niceness is a thread's own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
