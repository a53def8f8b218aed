"""Capture: images that were rejected or marked for audit, and the truth about them, kept to learn from; off by default.

An answer says that its images are captured only when they are on the disk, and truth is acknowledged only then, so that
neither is lost when the process is killed. A thread of its own writes whatever waits in one transaction, so that a slow disk
makes transactions larger; answers wait for it a moment at most, and when nothing can be stored, not at all.
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
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from serving.answers.recognition_id import Recognized
from serving.errors import TruthNotStored
from serving.feedback.capture_records import CapturedTruth, CaptureError, NotStored, Worth
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serving.feedback.capture_store import Store

log = logging.getLogger(__name__)

# How long an answer waits for its images to be stored, and how much of its call's time it leaves for what comes after.
_PATIENCE_SECONDS = 0.1
_RESERVED_SECONDS = 0.02

# How long truth waits, which nobody is in a hurry for, but whose caller is to be told.
_TRUTH_PATIENCE_SECONDS = 2.0

# How often is looked for what is too old or too much.
_RETENTION_SECONDS = 60.0

# Images and truths in a transaction, when more wait: all of them are on the disk or none, so those before wait for the last.
_TOGETHER = 2000


@dataclass(frozen=True)
class _Entry:
    """What one call wants stored; `stored` is done on the event loop."""

    worth: Worth | None
    truths: Sequence[CapturedTruth]
    stored: "asyncio.Future[bool]"

    @property
    def images(self) -> int:
        return len(self.worth.places) if self.worth else 0

    @property
    def size(self) -> int:
        return self.images + len(self.truths)


def open_store(settings: Settings) -> "Store":
    """What stores them, as the settings say. SQLAlchemy, which that takes, is loaded only here. Raises CaptureError."""
    try:
        from serving.feedback.capture_store import Store
    except ImportError as error:
        raise CaptureError(f"--capture needs SQLAlchemy ({error}): pip install 'postal-digits[capture]'") from error
    return Store(settings.capture or "", settings.capture_days, settings.capture_max_images)


class Capture:
    """Hands images and truths to the thread that stores them, and counts what becomes of them."""

    def __init__(self, store: "Store", metrics: Metrics, max_waiting: int):
        """Is ready to start.

        Args:
            store: where to.
            metrics: where they are counted.
            max_waiting: images and truths that may wait to be stored.
        """
        self._store = store
        self._max_waiting = max_waiting
        self._counters = {
            (kind, outcome): metrics.captured.labels(kind, outcome)
            for kind in ("image", "truth")
            for outcome in ("stored", "failed", "skipped")
        }
        self._waiting = 0
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._failing: set[str] = set()  # what does, by the events of the log
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)

    async def start(self) -> None:
        """Begins to store, and to delete what is too old, on the running event loop.

        Raises:
            CaptureError: a database on this machine can't be used; one over the network may yet come.
        """
        if self._store.local:
            try:
                await asyncio.to_thread(self._store.reach)
            except NotStored as error:
                raise CaptureError(f"--capture: nothing can be stored in {self._store}: {error}") from error
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        message = f"what is rejected or marked for audit is captured in {self._store}"
        log_event(log, logging.INFO, "capture_started", message)

    async def keep(self, answer: Recognized, images: NDArray[np.uint8], deadline: float) -> bool:
        """Has those of an answer's `images`, (n, 784) uint8, stored that are worth to be learnt from.

        Args:
            answer: what was answered.
            images: as the network saw them.
            deadline: when the answer must be given, monotonic clock.

        Returns:
            Whether there are any, and they are stored for certain, as far as that shows in a moment.
        """
        worth = Worth.of(answer, images)
        entry = self._submit(_Entry(worth, (), self._loop.create_future())) if len(worth.places) else None
        if entry is None or "capture" in self._failing:
            return False
        patience = min(_PATIENCE_SECONDS, deadline - time.monotonic() - _RESERVED_SECONDS)
        await asyncio.wait([entry.stored], timeout=max(0.0, patience))
        return entry.stored.done() and entry.stored.result()

    async def keep_truths(self, truths: Sequence[CapturedTruth]) -> None:
        """Returns once truths are stored. Raises TruthNotStored."""
        if not truths:
            return
        entry = self._submit(_Entry(None, truths, self._loop.create_future()))
        if entry is not None:
            await asyncio.wait([entry.stored], timeout=_TRUTH_PATIENCE_SECONDS)
        if entry is None or not entry.stored.done() or not entry.stored.result():
            raise TruthNotStored("the truth can't be stored now, and nothing of it was counted: report it again later")

    async def close(self, grace_seconds: float) -> None:
        """Stores what waits, if that takes no longer than `grace_seconds`."""
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, grace_seconds)

    def _submit(self, entry: _Entry) -> _Entry | None:
        """Puts it where the thread finds it; None if too much waits there already."""
        if self._waiting + entry.size > self._max_waiting:
            self._count([entry], "skipped")
            return None
        self._waiting += entry.size
        self._queue.put(entry)
        return entry

    def _answer(self, entries: Sequence[_Entry], stored: bool) -> None:
        for entry in entries:
            self._waiting -= entry.size
            entry.stored.set_result(stored)
        self._count(entries, "stored" if stored else "failed")

    def _count(self, entries: Sequence[_Entry], outcome: str) -> None:
        self._counters["image", outcome].inc(sum(entry.images for entry in entries))
        self._counters["truth", outcome].inc(sum(len(entry.truths) for entry in entries))

    def _work(self) -> None:
        """In the thread: stores whatever waits, again and again, and now and then deletes what is too old."""
        closing, delete_at = False, time.monotonic()
        self._succeeds("capture", partial(self._store.add, (), ()))  # which makes the tables
        while not closing:
            entries, closing = self._take(max(0.0, delete_at - time.monotonic()))
            if entries:
                stored = self._succeeds("capture", partial(self._add, entries))
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._answer, entries, stored)
            if time.monotonic() >= delete_at:
                self._succeeds("retention", self._store.delete_old)
                delete_at = time.monotonic() + _RETENTION_SECONDS
        self._store.close()

    def _take(self, timeout_seconds: float) -> tuple[list[_Entry], bool]:
        """Whatever waits, or comes within the timeout; and whether nothing more will come."""
        entries: list[_Entry] = []
        size = 0
        with contextlib.suppress(queue.Empty):
            entry = self._queue.get(timeout=timeout_seconds)
            while entry is not None:
                entries.append(entry)
                size += entry.size
                if size >= _TOGETHER:
                    return entries, False
                entry = self._queue.get_nowait()
            return entries, True
        return entries, False

    def _add(self, entries: Sequence[_Entry]) -> None:
        images = [row for entry in entries if entry.worth for row in entry.worth.rows()]
        self._store.add(images, [truth for entry in entries for truth in entry.truths])

    def _succeeds(self, what: str, work: Callable[[], None]) -> bool:
        """Whether `work` does, on the database; the log has when it begins to fail, and when that is over."""
        try:
            work()
        except Exception as error:  # whatever it is, what comes next may be stored
            if what not in self._failing:
                unknown = not isinstance(error, NotStored)
                message = f"{what} fails in {self._store}: {error}"
                log_event(log, logging.ERROR, f"{what}_failing", message, error=str(error), exc_info=unknown)
            self._failing.add(what)
            return False
        if what in self._failing:
            log_event(log, logging.INFO, f"{what}_recovered", f"{what} goes on in {self._store}")
        self._failing.discard(what)
        return True
