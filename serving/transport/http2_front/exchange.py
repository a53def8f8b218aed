"""One call on one HTTP/2 stream: what unary calls and streams share."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from serving.call import Call
from serving.errors import DeadlineExceeded, Internal, RequestError, Stopping
from serving.telemetry.logs import log_event
from serving.transport.http2_front.dialect import Dialect
from serving.transport.http2_front.engine import ENHANCE_YOUR_CALM, Http2Error
from serving.transport.http2_front.head import Head

if TYPE_CHECKING:
    from serving.transport.http2_front.connection import Connection

log = logging.getLogger(__name__)


class Exchange(ABC):
    """What unary calls and streams share: a deadline, a task, and an end, which comes once.

    Attributes:
        message_limit: size of a request message, at most.
        waits_since: since when a request message is due or arriving, on the clock of the event loop; None while none is.
        held: bytes of the request that no handler has taken.
        request_ended: True once the caller has sent all of its request.
        done: True once the call has an answer or an error, or its caller has gone.
        endless: True for a call that lasts until its caller cancels it.
    """

    __slots__ = (
        "_dialect",
        "_task",
        "_timer",
        "call",
        "connection",
        "done",
        "endless",
        "head",
        "held",
        "message_limit",
        "request_ended",
        "stream_id",
        "waits_since",
    )

    def __init__(
        self, connection: "Connection", stream_id: int, head: Head, dialect: Dialect, call: Call, message_limit: int
    ):
        self.connection = connection
        self.stream_id = stream_id
        self.head = head
        self.call = call
        self.message_limit = message_limit
        self.waits_since: float | None = connection.heard
        self.held = 0
        self.request_ended = False
        self.done = False
        self.endless = False
        self._dialect = dialect
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def end_after(self, seconds: float) -> None:
        """Sets the deadline of the call."""
        self._timer = self.connection.front.loop.call_later(seconds, self._expire)

    @abstractmethod
    def receive(self, data: bytes, *, ended: bool) -> None:
        """Takes a part of the request's body; `ended` if it is the last."""

    def refuse(self, error: RequestError) -> None:
        """Ends a call whose request has not reached its handler completely, and counts it."""
        if not self.done:
            if self._task:
                self._task.cancel()
            self.connection.front.routes.refuse(self.head.path, error, self.call.peer)
            self.fail(error)

    def sweep(self, now: float) -> None:
        """Ends a call whose request takes too long to arrive."""
        limit = self.connection.front.limits.message_seconds
        if self.waits_since is not None and now - self.waits_since > limit:
            self.connection.front.count_limit("message_time")
            self.refuse(DeadlineExceeded(f"the message took longer than {limit:g} s to arrive"))

    def fail(self, error: RequestError) -> None:
        """Ends the call with an error."""
        if self._close():
            with contextlib.suppress(Http2Error):  # the caller has gone meanwhile
                self._send_error(error)
            self.connection.answered(self)

    def cancel(self) -> None:
        """Ends the work for a caller who has gone."""
        if not self.done:
            self._stop_work()
            self._close()

    def give_way(self, error: RequestError) -> None:
        """Ends a call for which a full worker has no room."""
        if self.done:  # it keeps its stream, as its caller takes no answer
            with contextlib.suppress(Http2Error):
                self.connection.engine.reset(self.stream_id, ENHANCE_YOUR_CALM)
            self.connection.flush_soon()
        else:
            self._end_early(error)

    def cut_off(self) -> None:
        """Ends a call that a stopping server can't wait for."""
        self._end_early(Stopping("the server is stopping"))

    def _expire(self) -> None:
        self._end_early(DeadlineExceeded("the deadline passed before the answer was ready"))

    def _end_early(self, error: RequestError) -> None:
        """Ends a call before its handler has."""
        if self.done:
            return
        if self._stop_work():
            self.fail(error)
        else:
            self.refuse(error)

    def _stop_work(self) -> bool:
        """Stops the handler, so that the dispatcher counts the call; returns False if no handler has the request."""
        if self._task:
            self._task.cancel()
        return self._task is not None

    def _send_error(self, error: RequestError) -> None:
        self._dialect.fail(self.connection.engine, self.stream_id, self.head, error)

    def _close(self) -> bool:
        """Marks the call as ended; returns False if it had ended already."""
        if self.done:
            return False
        self.done, self.waits_since = True, None
        self._task = None  # it refers to this exchange, and a cancelled one that never ran also to its request
        if self._timer:
            self._timer.cancel()
        self.connection.hold(self, -self.held)
        return True

    def _report_bug(self) -> None:
        """Ends a call whose handler raised something else than RequestError."""
        message = f"the handler of {self.connection.front.routes.name(self.head.path)} failed"
        log_event(log, logging.ERROR, "call_failed", message, exc_info=True)
        self.fail(Internal("internal error"))
