"""DOC."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import DeadlineExceeded, InferenceFailed, RequestError
from serving.telemetry.logs import log_event

_NO_ROWS = np.empty((0, 0), np.float32)


class Answer(NamedTuple):
    """What the model says of a request's images, and when; times on the clock of time.monotonic.

    Attributes:
        rows: (n, columns) float32, what the network says of each image.
        arrived: when the request came into the queue.
        started: when the first run with an image of it began.
        ended: when the last one had ended.
    """

    rows: NDArray[np.float32]
    arrived: float
    started: float
    ended: float


log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Entry:
    """One caller's images, and the future that its answer goes to."""

    pixels: memoryview  # of all its images, `count` times 784 bytes
    count: int
    deadline: float  # on the clock of time.monotonic; infinite when the caller set none
    arrived: float
    answer: asyncio.Future[Answer]
    rows: NDArray[np.float32] = field(default_factory=lambda: _NO_ROWS)  # (count, columns) when runs have filled it
    started: float = 0.0
    taken: int = 0  # images that have gone into a run
    answered: int = 0  # images that have come back from one


@dataclass(slots=True)
class Slice:
    """The images of a request that go into one run: those from `start` to `end`."""

    request: Entry
    start: int
    end: int


def hand_out(batch: list[Slice], rows: NDArray[np.float32], now: float) -> None:
    """Gives each request its rows, and its caller the answer once the rows are complete."""
    sound = np.isfinite(rows).all()
    if not sound:
        unsound = int((~np.isfinite(rows)).any(axis=1).sum())
        message = f"the model gave no number for {unsound} of {len(rows)} images"
        log_event(log, logging.ERROR, "answers_unsound", message, images=unsound)
    offset = 0
    for part in batch:
        request, size = part.request, part.end - part.start
        own = rows[offset : offset + size]
        if size == request.count:
            request.rows = own
        else:
            if not len(request.rows):
                request.rows = np.empty((request.count, rows.shape[1]), np.float32)
            request.rows[part.start : part.end] = own
        request.answered += size
        offset += size
        if not sound and not np.isfinite(own).all():
            fail(request, InferenceFailed("the model gave no number for an image of this request"))
        if request.answered < request.count or request.answer.done():
            continue
        if request.deadline <= now:
            fail(request, DeadlineExceeded("the deadline passed while the model ran"))
        else:
            request.answer.set_result(Answer(request.rows, request.arrived, request.started, now))


def fail(request: Entry, error: RequestError) -> None:
    """Ends a request with an error, unless it has ended already."""
    if not request.answer.done():
        request.answer.set_exception(error)
