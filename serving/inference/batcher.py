"""Gathers the images of many requests into runs of the model.

No timer is involved by default. A free runner takes all waiting requests as soon as no more are just coming in, so a lone
request runs at once, and batches grow with the load. An entry of the queue knows its caller: the entry of a caller who
gives up is dropped, and a failed run fails only the entries in it.
"""

import asyncio
import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context

import numpy as np
from numpy.typing import NDArray

from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import RequestError, Stopping
from serving.inference.admission import Admission
from serving.inference.batch import Slice, count_predictions, distribute, fail_all, fail_run, join
from serving.inference.classifier import Network
from serving.inference.entry import Answer, Entry, Request, SingleImage
from serving.inference.entry_queue import EntryQueue
from serving.inference.pace import Pace
from serving.telemetry.version_metrics import VersionMetrics

# Turns of the event loop without a new request, after which no request is just coming in: a call takes several turns from
# its first byte to the queue. With 64 callers, 0, 8 and 20 turns made runs of 4, 31 and 62 images and 1.00, 1.15 and 1.23
# times the calls a second (h2load, two cores). A lone caller goes at once: a quarter less CPU time a call.
_QUIET_TURNS = 8

_STOPPED = "the server stopped before it could answer"


class Batcher:
    """The queue of one model version, and the runners that empty it. Only longer runs leave the event loop.

    Attributes:
        idle: set while no image waits for an answer, in the queue or in a run.
    """

    def __init__(
        self,
        network: Network,
        metrics: VersionMetrics,
        *,
        instances: int,
        max_batch_size: int,
        max_queue_size: int,
        max_queue_delay_seconds: float = 0.0,
        brief_seconds: float = 0.0,
    ):
        """Starts `instances` runners on the running event loop, each with a thread for its runs.

        Args:
            network: runs the batches.
            metrics: counts queue, batches, runs and predictions.
            instances: runs at the same time.
            max_batch_size: images in one run, at most.
            max_queue_size: images of each priority that may wait, at most.
            max_queue_delay_seconds: time a free runner waits for a full batch before it runs a smaller one.
            brief_seconds: a run that is expected to take less stays on the event loop, where nothing can cut it off.
        """
        self._network = network
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._delay = max_queue_delay_seconds
        self._brief = brief_seconds
        self._queue = EntryQueue(metrics, max_batch_size)
        self._pace = Pace()
        self._admission = Admission(self._queue, self._pace, max_queue_size)
        self._crowded = False  # True if the last run served several callers
        self._soon = 0.0  # a caller of the last run can't come back over a network before this time
        self._ran_in_turn = False  # True if a lone image was run in this turn of the event loop
        self._met = False  # True if an image was queued in such a turn
        self._running = 0  # runs under way
        self._batch_waiting = 0  # images of priority batch in the queue
        self._stopping = False
        self.idle = asyncio.Event()
        self._work = asyncio.Event()  # set while there is anything to do
        self._full = asyncio.Event()  # set while waiting for more requests is pointless
        self._gathering = asyncio.Lock()  # one runner at a time lets requests arrive; a second would wait for the same ones
        self._state = (False, False, False)  # of the three events
        self._threads = ThreadPoolExecutor(instances, thread_name_prefix="inference")
        self._queue_changed()
        # An empty context: the log lines of a batcher that a traced call loads must not carry that call's ids.
        self._runners = [asyncio.create_task(self._run_batches(), context=Context()) for _ in range(instances)]

    async def submit(
        self, pixels: bytes, deadline: float = math.inf, call: Call | None = None, *, batch: bool = False
    ) -> Answer:
        """Queues the images of one request and waits for their answer.

        Args:
            pixels: n images of 784 bytes, at least one.
            deadline: on the clock of time.monotonic.
            call: the call that the images belong to, whose client gets a turn; None for one without a client.
            batch: True for priority batch, False for live.

        Returns:
            One row an image, in order.

        Raises:
            QueueFull: the queue has no room for all images, or the answer would be late.
            DeadlineExceeded: the deadline passed; images that still waited were not run.
            InferenceFailed: a run with any of the images failed, or returned NaN or infinity for one of them.
            Stopping: the batcher was closed.
            ValueError: `pixels` is empty, or not a multiple of 784 bytes.
        """
        count, rest = divmod(len(pixels), IMAGE_BYTES)
        if rest or not count:
            raise ValueError(f"{len(pixels)} bytes are not a whole number of images")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        request = Request(memoryview(pixels), count, deadline, time.monotonic(), future, call or Call(), batch)
        self.enter(request)
        try:
            return await future
        except RequestError:
            self._drop(request)  # the rest of its images need not run
            raise
        except asyncio.CancelledError:
            self.leave(request, counted=not future.cancelled())
            raise

    def enter(self, entry: Entry) -> None:
        """Queues an entry, whose caller is told once the model has read all its images; runs a lone entry at once.

        Raises:
            QueueFull: the queue has no room for all images, or the answer would be late.
            Stopping: the batcher was closed.
        """
        if self._stopping:
            raise Stopping("the server is stopping")
        if self._queue.waiting or entry.count > self._max_queue_size:
            self._admission.refuse_excess(entry)
        if self._is_lone(entry):
            self._run_at_once(entry)
            return
        self._met |= self._ran_in_turn
        self._queue.add(entry)
        self._queue_changed()

    def leave(self, entry: Entry, *, counted: bool = False) -> None:
        """Drops an entry whose caller has gone, and counts it as failed, unless it is `counted` already."""
        if not counted:
            self._metrics.failed_seconds.observe(time.monotonic() - entry.arrived)
        self._drop(entry)

    async def close(self, grace_seconds: float) -> int:
        """Refuses new requests, answers the queued ones, and stops. After the grace, unanswered requests end as Stopping.

        Returns:
            Runs that have not ended. Nothing can cut them off: their threads live on.
        """
        self._stopping = True
        self._queue_changed()
        _, late = await asyncio.wait(self._runners, timeout=grace_seconds)
        stuck = self._running
        for runner in late:
            runner.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        fail_all(self._queue, Stopping, _STOPPED, self._metrics)
        self._threads.shutdown(wait=not stuck)
        return stuck

    async def _run_batches(self) -> None:
        """Empties the queue batch by batch, until the batcher is closed and the queue is empty."""
        while True:
            async with self._gathering:
                await self._work.wait()
                await self._let_arrive()
                batch = self._queue.take_batch()
            if batch:
                await self._run(batch)
                if self._queue.waiting:
                    await asyncio.sleep(0)  # lets other tasks proceed, also after a run on the event loop
                continue
            self._pace.break_backlog()  # only late requests waited
            self._queue_changed()
            if self._stopping:
                return

    async def _let_arrive(self) -> None:
        """Waits until the requests that are just coming in have reached the queue, or fill a batch."""
        quiet = 0 if self._crowded or len(self._queue) > 1 else _QUIET_TURNS
        while quiet < _QUIET_TURNS and not self._full.is_set():
            before = self._queue.waiting
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._queue.waiting == before else 0
        while self._delay and self._queue.waiting and not self._full.is_set():
            remaining = min(entry.arrived for entry in self._queue) + self._delay - time.monotonic()
            if remaining <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), remaining)

    async def _run(self, batch: list[Slice]) -> None:
        """Runs one batch, in a thread unless the run is brief. An error fails only the entries in it."""
        images = join(batch)
        if self._is_brief(len(images)):
            self._run_here(batch, images)
            self._queue_changed()
            return
        self._running += 1
        self._queue_changed()
        start = self._begin(batch)
        try:
            rows, seconds = await asyncio.get_running_loop().run_in_executor(self._threads, self._classify, images)
            self._finish(batch, images, rows, start, seconds, runners=len(self._runners))
        except Exception:
            self._pace.forget_run_time()
            fail_run(batch, self._metrics)
        except asyncio.CancelledError:
            fail_all([part.entry for part in batch], Stopping, _STOPPED, self._metrics)
            raise
        finally:
            self._running -= 1
            self._queue_changed()

    def _run_here(self, batch: list[Slice], images: NDArray[np.uint8]) -> None:
        """Runs one batch on the event loop."""
        start = self._begin(batch)
        try:
            rows, seconds = self._classify(images)
            self._finish(batch, images, rows, start, seconds, runners=1)
        except Exception:
            self._pace.forget_run_time()
            fail_run(batch, self._metrics)

    def _is_brief(self, images: int) -> bool:
        return 0 < self._pace.run_seconds_per_image * images < self._brief

    def _run_at_once(self, entry: Entry) -> None:
        """Runs a lone image before its caller waits. Further images of this turn of the event loop have other callers."""
        entry.started, entry.taken = entry.arrived, 1
        batch = [Slice(entry, 0, 1)]
        self._ran_in_turn = True
        asyncio.get_running_loop().call_soon(self._end_turn)
        self._run_here(batch, join(batch))

    def _end_turn(self) -> None:
        self._ran_in_turn = False

    def _is_lone(self, entry: Entry) -> bool:
        """True if nothing else is queued or running, no other caller is about, and the run is brief: it can run at once."""
        busy = self._queue.waiting or self._running or self._crowded or self._ran_in_turn or entry.arrived < self._soon
        return (
            isinstance(entry, SingleImage)
            and not busy
            and not self._delay
            and entry.arrived < entry.deadline
            and self._is_brief(1)
        )

    def _begin(self, batch: list[Slice]) -> float:
        """Notes the callers of a run, and returns its start."""
        self._crowded = len(batch) > 1 or self._met or (batch[0].start == 0 and batch[0].entry.arrived < self._soon)
        self._met = False
        self._metrics.last_request.set(time.time())
        return time.monotonic()

    def _classify(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        """Runs the model in the calling thread; returns the rows and the seconds spent."""
        start = time.monotonic()
        rows = self._network.classify(images)
        return rows, time.monotonic() - start

    def _finish(
        self,
        batch: list[Slice],
        images: NDArray[np.uint8],
        rows: NDArray[np.float32],
        start: float,
        seconds: float,
        *,
        runners: int,
    ) -> None:
        """Learns from a run that took `seconds` inside the model, distributes its rows, and counts it."""
        end = time.monotonic()
        self._pace.learn(start, end, len(rows), run_seconds=seconds, runners=runners, waiting=self._queue.waiting)
        self._soon = end + min(seconds, self._brief)
        distribute(batch, rows, end, self._metrics)
        self._metrics.batch_size.observe(len(rows))
        self._metrics.inference_seconds.observe(end - start)
        count_predictions(images.reshape(-1, IMAGE_BYTES), rows, self._metrics)

    def _drop(self, entry: Entry) -> None:
        if self._queue.drop(entry):
            self._queue_changed()

    def _queue_changed(self) -> None:
        batch_waiting = self._queue.batch.waiting
        self._metrics.queue_length.set(self._queue.waiting - batch_waiting)
        if batch_waiting != self._batch_waiting:
            self._batch_waiting = batch_waiting
            self._metrics.batch_queue_length.set(batch_waiting)
        idle = not self._queue.waiting and not self._running
        work = self._queue.waiting > 0 or self._stopping
        full = self._queue.waiting >= self._max_batch_size or self._stopping
        if (idle, work, full) != self._state:  # few of many requests change it
            self._state = (idle, work, full)
            _set(self.idle, idle)
            _set(self._work, work)
            _set(self._full, full)


def _set(event: asyncio.Event, happened: bool) -> None:
    (event.set if happened else event.clear)()
