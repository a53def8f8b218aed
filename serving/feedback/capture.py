"""Capture: stores images that were rejected or marked for audit, and the truth about them, to learn from. Off by default.

An answer reports its images as captured only once they are on disk, and truth is acknowledged only then: neither is lost if
the process is killed. One thread writes all waiting records in one transaction, so a slow disk makes transactions larger.
Answers wait for the disk for a moment at most. While the database fails, they do not wait at all.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from serving.answers.recognition_id import Recognized
from serving.errors import TruthNotStored
from serving.feedback.capture_records import CapturedTruth, CaptureError, CaptureSelection, NotStored
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serving.feedback.capture_store import Store

log = logging.getLogger(__name__)

# Longest wait of an answer for its images to be stored, and the part of the call's time left for the rest of its work.
_IMAGE_TIMEOUT_SECONDS = 0.1
_RESERVED_SECONDS = 0.02

# Longest wait of reported truth. No piece of mail waits for it, but its caller needs the acknowledgement.
_TRUTH_TIMEOUT_SECONDS = 2.0

# Interval between two deletions of images that are too old or too many.
_RETENTION_INTERVAL_SECONDS = 60.0

# A transaction takes no more entries once it has this many images and truths. All entries of a transaction are acknowledged
# together, so the first entry waits for the last.
_TRANSACTION_SIZE = 2000

# Events that the log has when work on the database begins to fail, and when it works again.
_EVENTS = {
    "capture": ("capture_failing", "capture_recovered"),
    "retention": ("retention_failing", "retention_recovered"),
}


@dataclass(frozen=True)
class _Entry:
    """The records of one call. `stored` is completed on the event loop."""

    selection: CaptureSelection | None
    truths: Sequence[CapturedTruth]
    stored: "asyncio.Future[bool]"

    @property
    def images(self) -> int:
        return len(self.selection.indexes) if self.selection else 0

    @property
    def size(self) -> int:
        return self.images + len(self.truths)


def open_store(settings: Settings) -> "Store":
    """Opens the database that the settings name. Only this function loads SQLAlchemy. Raises CaptureError."""
    try:
        from serving.feedback.capture_store import Store
    except ImportError as error:
        raise CaptureError(f"--capture needs SQLAlchemy ({error}): run pip install '.[capture]' in a checkout") from error
    return Store(settings.capture or "", settings.capture_days, settings.capture_max_images)


class Capture:
    """Hands images and truths to the thread that stores them, and counts the outcomes."""

    def __init__(self, store: "Store", metrics: Metrics, max_waiting: int):
        """Creates the thread without starting it.

        Args:
            store: the database.
            metrics: counts stored, failed and skipped records.
            max_waiting: maximum number of images and truths that may wait to be stored; further ones are skipped.
        """
        self._store = store
        self._max_waiting = max_waiting
        self._counters = {
            (record, outcome): metrics.captured.labels(record, outcome)
            for record in ("image", "truth")
            for outcome in ("stored", "failed", "skipped")
        }
        self._waiting = 0
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._failing: set[str] = set()  # keys of _EVENTS
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)

    async def start(self) -> None:
        """Starts the thread, which stores records and deletes old ones. Call it on the event loop of the service.

        Raises:
            CaptureError: the database is a file and can't be used. A database on the network may become available later.
        """
        if self._store.local:
            try:
                await asyncio.to_thread(self._store.reach)
            except NotStored as error:
                raise CaptureError(f"--capture: nothing can be stored in {self._store}: {error}") from error
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        message = f"images that are rejected or marked for audit are captured in {self._store}"
        log_event(log, logging.INFO, "capture_started", message)

    async def keep(self, answer: Recognized, images: NDArray[np.uint8], whole: NDArray[np.float32], deadline: float) -> bool:
        """Stores the images of an answer that were rejected or marked for audit.

        Args:
            answer: the answer.
            images: all images of the answer, (n, 784) uint8, the network's input.
            whole: (n,) float32, the probability of one whole digit, 0 where the framer of crops is not sure.
            deadline: deadline of the answer, on the clock of time.monotonic.

        Returns:
            True only once such images are on disk. False if there are none, or the disk did not confirm them in time; they
            may still be stored later.
        """
        selection = CaptureSelection.of(answer, images, whole)
        if not selection.indexes:
            return False
        entry = self._submit(_Entry(selection, (), self._loop.create_future()))
        if entry is None or "capture" in self._failing:
            return False
        timeout = min(_IMAGE_TIMEOUT_SECONDS, deadline - time.monotonic() - _RESERVED_SECONDS)
        await asyncio.wait([entry.stored], timeout=max(0.0, timeout))
        return entry.stored.done() and entry.stored.result()

    async def keep_truths(self, truths: Sequence[CapturedTruth]) -> None:
        """Returns once the truths are on disk. Raises TruthNotStored."""
        if not truths:
            return
        entry = self._submit(_Entry(None, truths, self._loop.create_future()))
        if entry is not None:
            await asyncio.wait([entry.stored], timeout=_TRUTH_TIMEOUT_SECONDS)
        if entry is None or not entry.stored.done() or not entry.stored.result():
            raise TruthNotStored("the truths can't be stored now, and none was counted; report them again later")

    async def close(self, grace_seconds: float) -> None:
        """Stores the waiting records, for at most `grace_seconds`, then stops the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, grace_seconds)

    def _submit(self, entry: _Entry) -> _Entry | None:
        """Queues the entry for the thread. Returns None if too many records are waiting."""
        if self._waiting + entry.size > self._max_waiting:
            self._count([entry], "skipped")
            return None
        self._waiting += entry.size
        self._queue.put(entry)
        return entry

    def _acknowledge(self, entries: Sequence[_Entry], stored: bool) -> None:
        for entry in entries:
            self._waiting -= entry.size
            entry.stored.set_result(stored)
        self._count(entries, "stored" if stored else "failed")

    def _count(self, entries: Sequence[_Entry], outcome: str) -> None:
        self._counters["image", outcome].inc(sum(entry.images for entry in entries))
        self._counters["truth", outcome].inc(sum(len(entry.truths) for entry in entries))

    def _work(self) -> None:
        """Runs in the thread: stores waiting entries, and deletes old rows once per interval."""
        closing, delete_at = False, time.monotonic()
        self._try("capture", partial(self._store.add, (), ()))  # creates the tables
        while not closing:
            entries, closing = self._take(max(0.0, delete_at - time.monotonic()))
            if entries:
                stored = self._try("capture", partial(self._add, entries))
                with contextlib.suppress(RuntimeError):  # the event loop is closed, and no call waits any more
                    self._loop.call_soon_threadsafe(self._acknowledge, entries, stored)
            if time.monotonic() >= delete_at:
                self._try("retention", self._store.delete_old)
                delete_at = time.monotonic() + _RETENTION_INTERVAL_SECONDS
        self._store.close()

    def _take(self, timeout_seconds: float) -> tuple[list[_Entry], bool]:
        """Takes the entries of one transaction off the queue.

        Args:
            timeout_seconds: longest wait for the first entry.

        Returns:
            The entries, and True if `close` was called and the queue is empty.
        """
        entries: list[_Entry] = []
        size = 0
        with contextlib.suppress(queue.Empty):
            entry = self._queue.get(timeout=timeout_seconds)
            while entry is not None:
                entries.append(entry)
                size += entry.size
                if size >= _TRANSACTION_SIZE:
                    return entries, False
                entry = self._queue.get_nowait()
            return entries, True
        return entries, False

    def _add(self, entries: Sequence[_Entry]) -> None:
        images = [row for entry in entries if entry.selection for row in entry.selection.rows()]
        self._store.add(images, [truth for entry in entries for truth in entry.truths])

    def _try(self, name: Literal["capture", "retention"], work: Callable[[], None]) -> bool:
        """Runs `work` on the database. Logs an event when a series of failures begins, and one when it ends.

        Returns:
            True if the work succeeded.
        """
        failing, recovered = _EVENTS[name]
        try:
            work()
        except Exception as error:  # of any kind: the next entries may well be stored
            if name not in self._failing:
                unexpected = not isinstance(error, NotStored)
                message = f"{name} fails in {self._store}: {error}"
                log_event(log, logging.ERROR, failing, message, error=str(error), exc_info=unexpected)
            self._failing.add(name)
            return False
        if name in self._failing:
            log_event(log, logging.INFO, recovered, f"{name} works again in {self._store}")
        self._failing.discard(name)
        return True
