"""Queue entries, the slices of a run, and the answers that go back to the callers."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import DeadlineExceeded, InferenceFailed, RequestError
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_NO_ROWS = np.empty((0, 0), np.float32)


class Answer(NamedTuple):
    """The model's output for the images of one request. Times are on the clock of time.monotonic.

    Attributes:
        rows: (n, columns) float32, one row an image; classifier.py names the columns.
        arrived: when the request entered the queue.
        started: when the first run with an image of the request began.
        ended: when the last run with an image of the request ended.
    """

    rows: NDArray[np.float32]
    arrived: float
    started: float
    ended: float


@dataclass(eq=False, slots=True)
class Entry:
    """One caller's images in the queue, with the future that resolves to their answer.

    Attributes:
        pixels: the images, `count` times 784 bytes.
        count: images in the request.
        deadline: on the clock of time.monotonic; infinite without a deadline.
        arrived: when the request entered the queue, on the same clock.
        answer: resolves when all rows are there, or when the request fails.
        rows: (count, columns) float32, filled run by run.
        started: when the first run with an image of the request began.
        taken: images already taken into a run.
        answered: images whose rows are back.
    """

    pixels: memoryview
    count: int
    deadline: float
    arrived: float
    answer: asyncio.Future[Answer]
    rows: NDArray[np.float32] = field(default_factory=lambda: _NO_ROWS)
    started: float = 0.0
    taken: int = 0
    answered: int = 0


@dataclass(slots=True)
class Slice:
    """The images `start` to `end` of an entry, which go into one run."""

    entry: Entry
    start: int
    end: int


def distribute(batch: list[Slice], rows: NDArray[np.float32], now: float) -> None:
    """Gives each entry of a batch its rows, and resolves the entries that are complete.

    Args:
        batch: the slices of the run, in order.
        rows: (images in the run, columns) float32, in the same order. NaN or infinity fails the entry that has it.
        now: the end of the run, on the clock of time.monotonic. Entries past their deadline fail.
    """
    finite = np.isfinite(rows).all()
    if not finite:
        broken = int((~np.isfinite(rows)).any(axis=1).sum())
        message = f"the model returned NaN or infinity for {broken} of {len(rows)} images"
        log_event(log, logging.ERROR, "answers_unsound", message, images=broken)
    offset = 0
    for part in batch:
        entry, size = part.entry, part.end - part.start
        own = rows[offset : offset + size]
        if size == entry.count:
            entry.rows = own
        else:
            if not len(entry.rows):
                entry.rows = np.empty((entry.count, rows.shape[1]), np.float32)
            entry.rows[part.start : part.end] = own
        entry.answered += size
        offset += size
        if not finite and not np.isfinite(own).all():
            fail(entry, InferenceFailed("the model returned NaN or infinity for an image in this request"))
        if entry.answered < entry.count or entry.answer.done():
            continue
        if entry.deadline <= now:
            fail(entry, DeadlineExceeded("the deadline passed while the model ran"))
        else:
            entry.answer.set_result(Answer(entry.rows, entry.arrived, entry.started, now))


def fail(entry: Entry, error: RequestError) -> None:
    """Ends an entry with an error, unless it has ended already."""
    if not entry.answer.done():
        entry.answer.set_exception(error)
