"""The entries of a batcher's queue: a request with a future, or the image of a call that is answered by the run."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.call import Call, Reply, Source
from serving.errors import QueueFull, RequestError


class Entry(Protocol):
    """One caller's images in the queue. Times are on the clock of time.monotonic.

    Attributes:
        count: images of the entry.
        deadline: infinite without a deadline.
        arrived: when the entry joined the queue.
        started: when the first run with an image of the entry began.
        taken: images already taken into a run.
        batch: True for priority batch, False for live.
    """

    count: int
    deadline: float
    arrived: float
    started: float
    taken: int
    batch: bool

    @property
    def source(self) -> Source:
        """The client, and its connection."""

    @property
    def pixels(self) -> bytes | memoryview:
        """The images, `count` times 784 bytes."""

    @property
    def done(self) -> bool:
        """True once the entry was answered or has failed, or its caller has gone."""

    def fail(self, error: RequestError, /) -> None:
        """Ends an entry that is not done with an error."""


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
class Request:
    """An entry of n images, with the future that resolves to their answer.

    Attributes:
        call: the call that the images belong to.
        batch: True for priority batch, False for live.
        answer: resolves when all rows are there, or when the request fails.
        rows: (count, columns) float32, filled run by run; None before the first run.
        answered: images whose rows are back.
    """

    pixels: memoryview
    count: int
    deadline: float
    arrived: float
    answer: asyncio.Future[Answer]
    call: Call
    batch: bool = False
    rows: NDArray[np.float32] | None = None
    started: float = 0.0
    taken: int = 0
    answered: int = 0

    @property
    def source(self) -> Source:
        """The client, and its connection."""
        return self.call.source

    @property
    def done(self) -> bool:
        """True once the future is resolved, or the caller has gone."""
        return self.answer.done()

    def fail(self, error: RequestError) -> None:
        """Ends the caller's wait with an error."""
        self.answer.set_exception(error)

    def store(self, start: int, end: int, rows: NDArray[np.float32]) -> bool:
        """Stores the rows of the images `start` to `end`; returns True once all rows are there."""
        self.answered += end - start
        if end - start == self.count:
            self.rows = rows
            return True
        if self.rows is None:
            self.rows = np.empty((self.count, rows.shape[1]), np.float32)
        self.rows[start:end] = rows
        return self.answered == self.count

    def resolve(self, ended: float) -> None:
        """Answers the caller with the stored rows; `ended` is the end of the last run."""
        if self.rows is not None:
            self.answer.set_result(Answer(self.rows, self.arrived, self.started, ended))


@dataclass(eq=False, slots=True)
class SingleImage:
    """The image of one call that has neither a task nor a future: `group` answers it together with others of its run.

    Attributes:
        call: the call.
        reply: takes the answer or the error of the call.
        outcomes: tells the caller how the call has ended, and counts that.
        tail: fields of the encoded answer that belong to this call alone, such as the request's own id.
        group: the calls that are answered alike; set before the image joins the queue.
        batch: True for priority batch, False for live.
        done: True once the call was answered or has failed, or its caller has gone.
        read: True once the model has read the image, and the queue has no part in the call any more.
    """

    pixels: bytes
    deadline: float
    arrived: float
    call: Call
    reply: Reply
    outcomes: "Outcomes"
    tail: bytes
    group: "Group" = field(init=False)
    count: int = field(default=1, init=False)
    started: float = field(default=0.0, init=False)
    taken: int = field(default=0, init=False)
    batch: bool = field(default=False, init=False)
    done: bool = field(default=False, init=False)
    read: bool = field(default=False, init=False)

    @property
    def source(self) -> Source:
        """The client, and its connection."""
        return self.call.source

    def fail(self, error: RequestError) -> None:
        """Ends the call with an error."""
        if self.call.client and isinstance(error, QueueFull):  # it had a place, and gives way to another client
            self.call.client.give_back(1)
        self.outcomes.fail(self, error)

    def abandon(self) -> None:
        """Takes the call out of the service: its caller has gone, or its deadline has passed."""
        if not self.done:
            self.outcomes.abandon(self)


class Outcomes(Protocol):
    """Ends calls: marks them as done, tells their callers, and counts them."""

    def succeed(self, images: Sequence[SingleImage], encoded: Sequence[bytes], /) -> None:
        """Answers the calls that are not done, each with its message."""

    def fail(self, image: SingleImage, error: RequestError, /) -> None:
        """Ends a call with an error."""

    def fail_internally(self, images: Sequence[SingleImage], /) -> None:
        """Ends the calls that are not done, and logs the exception that is being handled: a fault of the server."""

    def abandon(self, image: SingleImage, /) -> None:
        """Ends a call whose caller takes no answer."""


class Group(Protocol):
    """Calls that one model version answers alike."""

    def answer(self, images: Sequence[SingleImage], rows: NDArray[np.float32], ended: float, /) -> None:
        """Answers calls of one run, which the model has read.

        Args:
            images: n images of this group, in the order of the rows.
            rows: (n, columns) float32.
            ended: when the run ended, on the clock of time.monotonic.
        """

    def leave(self, image: SingleImage, /) -> None:
        """Takes an image whose caller has gone out of the queue."""
