"""Gathers the images of many requests into runs of the model.

No clock is involved by default: a runner that is free takes whatever waits once no more is just coming in, so a lone
request is run at once and batches grow with the load. A request lies in the queue together with its caller's future:
when the caller gives up, both are gone, and when a run fails, only the requests in it do.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, InferenceFailed, QueueFull, Stopping
from serving.inference.batch import Answer, Entry, Slice, fail, hand_out
from serving.telemetry.logs import log_event
from serving.telemetry.version_metrics import VersionMetrics

log = logging.getLogger(__name__)

# Turns of the event loop without a new request after which no more is just coming in: a call takes several from its first
# byte to the queue. With 64 callers, 0, 8 and 20 turns made runs of 4, 31 and 62 images and 1.00, 1.15 and 1.23 times the
# calls a second (h2load, two cores). A lone caller, who would wait for nobody, goes at once: a quarter less CPU time a call.
_QUIET_TURNS = 8

# How much longer than at the pace of the last runs what waits is thought to take, where a request must be in time: so widely
# does the pace vary. A request that is taken in turns waits twice as long again, as those behind it have theirs in between.
_CAUTION = 2

_FADING = 0.95  # of what earlier runs tell of the pace, with each run

_STOPPED = "the server stopped before it could answer"


class Network(Protocol):
    """What the batcher runs: images (n, 28, 28) uint8 to a row of float32 each, on any thread."""

    def infer(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Runs the model once."""


class Batcher:
    """The queue before one model, and the runners that empty it. Everything but longer runs happens on the event loop.

    Attributes:
        idle: set while no image waits for an answer, here or in a run.
    """

    def __init__(
        self,
        model: Network,
        metrics: VersionMetrics,
        *,
        instances: int,
        max_batch_size: int,
        max_queue_size: int,
        max_queue_delay_seconds: float = 0.0,
        brief_seconds: float = 0.0,
    ):
        """Starts `instances` runners on the running event loop, each with a thread to run the model in.

        Args:
            model: what runs the batches.
            metrics: where queue, batches and runs are counted.
            instances: runs of the model at the same time.
            max_batch_size: images in a run, at most.
            max_queue_size: images that may wait, at most.
            max_queue_delay_seconds: how long a free runner waits for a batch to fill before it runs a smaller one.
            brief_seconds: what is thought to run for less is run on the event loop, which nothing can cut off.
        """
        self._model = model
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._delay = max_queue_delay_seconds
        self._brief = brief_seconds
        # A large request gets this many images into a batch before the next request has its turn.
        self._turn = max(1, max_batch_size // 8)
        self._queue: OrderedDict[Entry, None] = OrderedDict()  # in order of turn; a dict, so that any can leave
        self._waiting = 0  # images in the queue
        self._seconds_per_image = 0.0  # that the queue takes, all runners together, of the last runs
        self._recent_seconds = self._recent_images = 0.0  # of the last runs, older ones counting less
        self._run_seconds_per_image = 0.0  # that a run takes; running average, 0 where nothing is known
        self._last_end = 0.0  # of a run
        self._was_behind = False  # whether images waited then
        self._crowded = False  # whether the last run had several requests, or one that came soon: there are several callers
        self._soon = 0.0  # who waited for the last run's answer, and comes over a network, does not come again before then
        self._running = 0  # runs of the model under way
        self._stopping = False
        self.idle = asyncio.Event()
        self._work = asyncio.Event()  # set while there is anything to do
        self._full = asyncio.Event()  # set while there is no sense in waiting for more
        self._gathering = asyncio.Lock()  # a second runner would only look twice for what is just coming in
        self._threads = ThreadPoolExecutor(instances, thread_name_prefix="inference")
        self._queue_changed()
        self._runners = [asyncio.create_task(self._run_batches()) for _ in range(instances)]

    async def submit(self, pixels: bytes, deadline: float = math.inf) -> Answer:
        """Has the model read some images.

        Args:
            pixels: n images of 784 bytes, n at least 1, one after the other.
            deadline: when the answer is of no more use, on the clock of time.monotonic.

        Returns:
            What the model says of each image, in order.

        Raises:
            QueueFull: there is no room for all of them, or so many wait that they would be late.
            DeadlineExceeded: the deadline passed; what still waited then was not run.
            InferenceFailed: the model raised an error on a batch with any of them in it, or said no number for one of them.
            Stopping: the batcher was closed.
            ValueError: `pixels` is no whole number of images, or none.
        """
        count, rest = divmod(len(pixels), IMAGE_BYTES)
        if rest or not count:
            raise ValueError(f"{len(pixels)} bytes are no whole number of images")
        if self._stopping:
            raise Stopping("the server is stopping")
        now = time.monotonic()
        self._admit(count, deadline - now)
        request = Entry(
            pixels=memoryview(pixels),
            count=count,
            deadline=deadline,
            arrived=now,
            answer=asyncio.get_running_loop().create_future(),
        )
        self._queue[request] = None
        self._waiting += count
        self._queue_changed()
        spent = self._metrics.failed_seconds
        try:
            answer = await request.answer
            spent = self._metrics.answered_seconds
            self._metrics.queue_seconds.observe(answer.started - answer.arrived)
            return answer
        finally:  # answered, failed, or its caller is gone: none of it waits any more
            spent.observe(time.monotonic() - request.arrived)
            if request in self._queue:
                self._remove(request)
                self._queue_changed()

    async def close(self, grace_seconds: float) -> int:
        """Takes no more requests, answers those that it has, and stops; what takes longer than the grace ends as Stopping.

        Returns:
            Runs of the model that have not ended. They can't be cut off: their threads live on.
        """
        self._stopping = True
        self._queue_changed()
        _, late = await asyncio.wait(self._runners, timeout=grace_seconds)
        stuck = self._running
        for runner in late:
            runner.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for request in [*self._queue]:
            fail(request, Stopping(_STOPPED))
        self._threads.shutdown(wait=not stuck)
        return stuck

    def _admit(self, count: int, seconds_left: float) -> None:
        """Raises QueueFull for images that there is no room for, or no time: to run those would make others late as well."""
        if self._waiting + count > self._max_queue_size:
            raise QueueFull(
                f"the queue is full: {self._waiting} images wait, and {count} more would pass its limit of "
                f"{self._max_queue_size}",
                retry_after_seconds=(self._waiting + count - self._max_queue_size) * self._seconds_per_image,
            )
        caution = _CAUTION if count <= self._turn else 2 * _CAUTION
        late = (caution * self._waiting + count) * self._seconds_per_image - seconds_left
        if self._waiting and late > 0:
            raise QueueFull(
                f"{self._waiting} images wait, and {count} more would hardly be answered within their deadline",
                retry_after_seconds=late,
            )

    async def _run_batches(self) -> None:
        """Empties the queue, batch by batch, until the batcher is closed and the queue is empty."""
        while True:
            async with self._gathering:
                await self._work.wait()
                await self._let_arrive()
                batch = self._next_batch()
            if batch:
                await self._run(batch)
                if self._waiting:
                    await asyncio.sleep(0)  # others' turn, also after a run on the event loop
                continue
            self._queue_changed()
            if self._stopping:
                return

    async def _let_arrive(self) -> None:
        """Lets the requests that are just coming in reach the queue, or as many as make a batch; or go alone."""
        quiet = 0 if self._crowded or len(self._queue) > 1 else _QUIET_TURNS
        while quiet < _QUIET_TURNS and not self._full.is_set():
            before = self._waiting
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._waiting == before else 0
        while self._delay and self._queue and not self._full.is_set():
            oldest = next(iter(self._queue))
            remaining = oldest.arrived + self._delay - time.monotonic()
            if remaining <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), remaining)

    def _next_batch(self) -> list[Slice]:
        """Takes up to a batch of images off the queue, the requests in turn, and drops the requests that are late."""
        now = time.monotonic()
        room = self._max_batch_size
        batch = []
        while self._queue:
            request = next(iter(self._queue))
            if request.deadline <= now:
                fail(request, DeadlineExceeded("the deadline passed while the request waited"))
            if request.answer.done():  # late, failed in another run, or its caller is gone
                self._remove(request)
                continue
            left = request.count - request.taken
            if left <= self._turn:
                size = left  # so little is never torn in two
            elif len(self._queue) == 1:
                size = min(left, room)
            else:
                size = min(left, room, self._turn)
            if not 0 < size <= room:
                break
            if request.taken == 0:
                request.started = now
            batch.append(Slice(request, request.taken, request.taken + size))
            request.taken += size
            self._waiting -= size
            room -= size
            if size == left:
                self._remove(request)
            else:
                self._queue.move_to_end(request)
        self._was_behind = self._was_behind and bool(batch)  # what waited was late, and what comes next begins a new rush
        return batch

    async def _run(self, batch: list[Slice]) -> None:
        """Runs one batch, in a thread unless that is brief, and hands its answers out; an error reaches only its callers."""
        start = time.monotonic()
        self._running += 1
        self._queue_changed()
        try:
            pixels = b"".join([part.request.pixels[part.start * IMAGE_BYTES : part.end * IMAGE_BYTES] for part in batch])
            images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
            self._crowded = len(batch) > 1 or (batch[0].start == 0 and batch[0].request.arrived < self._soon)
            self._metrics.last_request.set(time.time())
            here = 0 < self._run_seconds_per_image * len(images) < self._brief
            if here:
                rows, seconds = self._infer(images)
            else:
                rows, seconds = await asyncio.get_running_loop().run_in_executor(self._threads, self._infer, images)
            end = time.monotonic()
            self._metrics.batch_size.observe(len(images))
            self._metrics.inference_seconds.observe(end - start)
            self._learn_pace(start, end, len(images), 1 if here else len(self._runners))
            known = self._run_seconds_per_image
            self._run_seconds_per_image += (seconds / len(images) - known) * (1 - _FADING if known else 1)
            self._soon = end + min(seconds, self._brief)
            hand_out(batch, rows, end)
        except Exception:
            self._run_seconds_per_image = 0.0  # to fail may take any time
            message = f"a run of {len(batch)} slices of requests failed"
            log_event(log, logging.ERROR, "run_failed", message, exc_info=True)
            for part in batch:
                fail(part.request, InferenceFailed("the model failed on a run with images of this request"))
        except asyncio.CancelledError:
            for part in batch:
                fail(part.request, Stopping(_STOPPED))
            raise
        finally:
            self._running -= 1
            self._queue_changed()

    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        """Runs the model, here: what it says, and how many seconds that took."""
        start = time.monotonic()
        return self._model.infer(images), time.monotonic() - start

    def _learn_pace(self, start: float, end: float, images: int, at_a_time: int) -> None:
        """Keeps a running average of the time that an image takes off the queue, all runners together."""
        behind = self._last_end if self._was_behind else None
        seconds = (end - start) / at_a_time if behind is None else end - behind
        # By images, so that a moment's standstill before a run of one does not count for as much as a run of a hundred.
        self._recent_seconds = _FADING * self._recent_seconds + seconds
        self._recent_images = _FADING * self._recent_images + images
        self._seconds_per_image = self._recent_seconds / self._recent_images
        self._last_end, self._was_behind = end, self._waiting > 0

    def _remove(self, request: Entry) -> None:
        del self._queue[request]
        self._waiting -= request.count - request.taken

    def _queue_changed(self) -> None:
        self._metrics.queue_length.set(self._waiting)
        _set(self.idle, not self._waiting and not self._running)
        _set(self._work, bool(self._queue) or self._stopping)
        _set(self._full, self._waiting >= self._max_batch_size or self._stopping)


def _set(event: asyncio.Event, happened: bool) -> None:
    if happened:
        event.set()
    else:
        event.clear()
