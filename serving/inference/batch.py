"""Queue entries, the slices of a run, and the answer to a request."""

import asyncio
import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import RequestError
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)


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
        rows: (count, columns) float32, filled run by run; None before the first run.
        started: when the first run with an image of the request began.
        taken: images already taken into a run.
        answered: images whose rows are back.
    """

    pixels: memoryview
    count: int
    deadline: float
    arrived: float
    answer: asyncio.Future[Answer]
    rows: NDArray[np.float32] | None = None
    started: float = 0.0
    taken: int = 0
    answered: int = 0


@dataclass(slots=True)
class Slice:
    """The images `start` to `end` of an entry, which go into one run."""

    entry: Entry
    start: int
    end: int

    def store(self, rows: NDArray[np.float32]) -> None:
        """Stores the rows of this slice in an entry that takes several runs."""
        if self.entry.rows is None:
            self.entry.rows = np.empty((self.entry.count, rows.shape[1]), np.float32)
        self.entry.rows[self.start : self.end] = rows


def fail(entry: Entry, error: RequestError) -> None:
    """Ends an entry with an error, unless it has ended already."""
    if not entry.answer.done():
        entry.answer.set_exception(error)


def report_broken(rows: NDArray[np.float32]) -> None:
    """Logs the number of images for which the model returned NaN or infinity."""
    broken = int((~np.isfinite(rows)).any(axis=1).sum())
    message = f"the model returned NaN or infinity for {broken} of {len(rows)} images"
    log_event(log, logging.ERROR, "answers_unsound", message, images=broken)
