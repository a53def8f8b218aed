"""Capture: images that were rejected or marked for audit, and the truth about them, kept to learn from; off by default.

An answer says that its images are captured only when they are on the disk, and truth is acknowledged only then, so that
neither is lost when the process is killed. A thread of its own writes whatever waits in one transaction, so that a slow disk
makes transactions larger, not calls slower; and when nothing can be stored, images are still read.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from serving.captured import CapturedImage, CapturedTruth, CaptureError, NotStored, images_of, truth_of
from serving.errors import TruthNotStored
from serving.logs import log_event
from serving.metrics import Metrics
from serving.recognition_id import Recognized
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.capture_store import Store

log = logging.getLogger(__name__)

# How long an answer waits for its images to be stored: a rejected one goes to a person, but an audited one must not be late.
_PATIENCE_SECONDS = 0.1

# How often is looked for what is too old or too much.
_RETENTION_SECONDS = 60.0


@dataclass(frozen=True)
class _Entry:
    """What one call wants stored; `stored` is done on the event loop."""

    images: Sequence[CapturedImage]
    truths: Sequence[CapturedTruth]
    stored: "asyncio.Future[bool]"


def open_store(settings: Settings) -> "Store":
    """What stores them, as the settings say. SQLAlchemy, which that takes, is loaded only here. Raises CaptureError."""
    try:
        from serving.capture_store import Store
    except ImportError as error:
        raise CaptureError(f"--capture needs SQLAlchemy ({error}): pip install 'postal-digits[capture]'") from error
    return Store(settings.capture or "", settings.capture_days, settings.capture_max_images)


class Capture:
    """Hands images and truths to the thread that stores them, and counts what becomes of them."""

    def __init__(self, store: "Store", metrics: Metrics, max_waiting: int):
        """Begins, on the running event loop.

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
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._thread.start()

    async def keep(self, answer: Recognized, images: NDArray[np.uint8]) -> bool:
        """Has those of an answer's `images`, (n, 784) uint8, stored that are worth to be learnt from.

        Returns:
            Whether they are for certain, as far as that shows within a tenth of a second.
        """
        entry = self._submit(images_of(answer, images), ())
        if entry is None:
            return False
        await asyncio.wait([entry.stored], timeout=_PATIENCE_SECONDS)
        return entry.stored.done() and entry.stored.result()

    async def keep_truths(self, said: Iterable[tuple[Recognized, int, str, str]]) -> None:
        """Has truth stored that is about images worth to be learnt from.

        Args:
            said: answers, places in them, sources and values.

        Raises:
            TruthNotStored: it can't be.
        """
        entry = self._submit((), [truth for one in said if (truth := truth_of(*one))])
        if entry is None or not await asyncio.shield(entry.stored):
            raise TruthNotStored("the truth can't be stored now, and nothing of it was counted: report it again later")

    async def close(self, grace_seconds: float) -> None:
        """Stores what waits, if that takes no longer than `grace_seconds`."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, grace_seconds)

    def _submit(self, images: Sequence[CapturedImage], truths: Sequence[CapturedTruth]) -> _Entry | None:
        """Puts it where the thread finds it; None if too much waits there already."""
        entry = _Entry(images, truths, self._loop.create_future())
        if self._waiting + len(images) + len(truths) > self._max_waiting:
            self._count([entry], "skipped")
            return None
        self._waiting += len(images) + len(truths)
        self._queue.put(entry)
        return entry

    def _answer(self, entries: Sequence[_Entry], stored: bool) -> None:
        for entry in entries:
            self._waiting -= len(entry.images) + len(entry.truths)
            if not entry.stored.done():  # its caller may be gone
                entry.stored.set_result(stored)
        self._count(entries, "stored" if stored else "failed")

    def _count(self, entries: Sequence[_Entry], outcome: str) -> None:
        self._counters["image", outcome].inc(sum(len(entry.images) for entry in entries))
        self._counters["truth", outcome].inc(sum(len(entry.truths) for entry in entries))

    def _work(self) -> None:
        """In the thread: stores whatever waits, again and again, and now and then deletes what is too old."""
        closing, delete_at = False, time.monotonic()
        while not closing:
            entries, closing = self._take(max(0.0, delete_at - time.monotonic()))
            if entries:
                images = [image for entry in entries for image in entry.images]
                truths = [truth for entry in entries for truth in entry.truths]
                stored = self._succeeds(partial(self._store.add, images, truths))
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(self._answer, entries, stored)
            if time.monotonic() >= delete_at:
                self._succeeds(self._store.delete_old)
                delete_at = time.monotonic() + _RETENTION_SECONDS
        self._store.close()

    def _take(self, timeout_seconds: float) -> tuple[list[_Entry], bool]:
        """Whatever waits, or comes within the timeout; and whether nothing more will come."""
        entries: list[_Entry] = []
        with contextlib.suppress(queue.Empty):
            entry = self._queue.get(timeout=timeout_seconds)
            while entry is not None:
                entries.append(entry)
                entry = self._queue.get_nowait()
            return entries, True
        return entries, False

    def _succeeds(self, work: Callable[[], None]) -> bool:
        """Whether `work` does, on the database; the log has when it begins to fail, and when that is over."""
        try:
            work()
        except Exception as error:  # whatever it is, what comes next may be stored
            if not self._failing:
                unknown = not isinstance(error, NotStored)
                message = f"nothing can be captured in {self._store}: {error}"
                log_event(log, logging.ERROR, "capture_failing", message, error=str(error), exc_info=unknown)
            self._failing = True
            return False
        if self._failing:
            log_event(log, logging.INFO, "capture_recovered", f"captured in {self._store} again")
        self._failing = False
        return True
