"""One call on one HTTP/2 stream: its request as it arrives, the work that answers it, and its answer."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from serving.api.dispatch import release_frames
from serving.call import Call, Pending
from serving.errors import DeadlineExceeded, Internal, InvalidRequest, RequestError, Stopping, TooLarge
from serving.telemetry.logs import log_event
from serving.transport.http2_front.dialect import Dialect, StreamDialect
from serving.transport.http2_front.engine import ENHANCE_YOUR_CALM, STREAM_WINDOW, Http2Error
from serving.transport.http2_front.framing import PREFIX_BYTES, read_only_message, read_prefix
from serving.transport.http2_front.head import Head
from serving.transport.http2_front.limits import STREAM_ANSWER_BYTES
from serving.transport.routes import Streaming, Unary

if TYPE_CHECKING:
    from serving.transport.http2_front.connection import Connection

log = logging.getLogger(__name__)

_BASE64_GROWTH = 4 / 3  # of a body in gRPC-Web text; the dialect checks the message itself
_REQUESTS_IN_A_ROW = 64  # of one stream
_MESSAGE_OVERHEAD = 64  # bytes that a waiting request takes beside its content: many small ones are no less a flood


class Exchange:
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

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Takes a part of the request's body; `ended` if it is the last."""
        raise NotImplementedError

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
        if self._timer:
            self._timer.cancel()
        self.connection.hold(self, -self.held)
        return True

    def _report_bug(self) -> None:
        """Ends a call whose handler raised something else than RequestError."""
        message = f"the handler of {self.connection.front.routes.name(self.head.path)} failed"
        log_event(log, logging.ERROR, "call_failed", message, exc_info=True)
        self.fail(Internal("internal error"))


class UnaryExchange(Exchange):
    """A call with one request and one answer."""

    __slots__ = ("_body", "_handler", "_pending")

    def __init__(self, connection: "Connection", stream_id: int, head: Head, dialect: Dialect, call: Call, handler: Unary):
        super().__init__(connection, stream_id, head, dialect, call, connection.front.message_limit(handler))
        self._handler = handler
        self._body: bytes | bytearray = b""
        self._pending: Pending | None = None  # the call, while it waits for a run of the model

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Takes a part of the request; the last has it answered."""
        self.connection.acknowledge(self.stream_id, len(data))
        if not self._body:
            self._body = data  # mostly the whole message
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += data
        if ended:
            self._begin()
            return
        self.connection.hold(self, len(data))
        if len(self._body) > self.message_limit * _BASE64_GROWTH + PREFIX_BYTES:
            self.refuse(TooLarge(f"the message is over {self.message_limit} bytes, which is the limit"))

    def _begin(self) -> None:
        """Has the complete request answered."""
        body, self._body = self._body, b""
        self.waits_since, self.request_ended = None, True
        self.connection.hold(self, self.head.size - self.held)
        try:
            message = self._dialect.read(body, self.head, self.message_limit)
        except RequestError as error:
            self.refuse(error)
            return
        pending = None
        if self._handler.method:
            try:
                pending = self.connection.front.routes.dispatcher.enter(self._handler.method, message, self.call, self)
            except Exception:  # it must end this call only
                self._report_bug()
                return
        if pending is None:
            self._task = self.connection.front.loop.create_task(self._run(message))
        elif not self.done:
            self._pending = pending

    def _close(self) -> bool:
        """Also lets go of the body, and of the pending call, which refers to this exchange."""
        self._pending, self._body = None, b""
        return super()._close()

    def _stop_work(self) -> bool:
        if self._pending:
            self._pending.abandon()
            return True
        return super()._stop_work()

    async def _run(self, message: bytes) -> None:
        try:
            work = self._handler.answer(message, self.call)
            del message
            self.succeed(await work)
        except RequestError as error:
            release_frames(error)
            self.fail(error)
        except Exception:
            self._report_bug()
        finally:
            self._task = None

    def succeed(self, message: bytes) -> None:
        """Ends the call with its answer."""
        if self._close():
            with contextlib.suppress(Http2Error):  # the caller has gone meanwhile
                self._dialect.answer(self.connection.engine, self.stream_id, self.head, message)
            self.connection.answered(self)


class StreamingExchange(Exchange):
    """A call with many requests, many answers, or both."""

    __slots__ = ("_arrival", "_begun", "_handler", "_part", "_requests", "_room", "_unacknowledged", "_waiting_bytes")

    _dialect: StreamDialect

    def __init__(
        self, connection: "Connection", stream_id: int, head: Head, dialect: Dialect, call: Call, handler: Streaming
    ):
        """Starts the handler, which waits for requests."""
        super().__init__(connection, stream_id, head, dialect, call, connection.front.message_limit(handler))
        self.endless = handler.endless
        if not self.endless:  # a caller of recognition may open its stream before it has the first image
            self.waits_since = None
        self._begun = False  # True once the headers of the answers are sent
        self._handler = handler
        self._part = bytearray()  # of the message that is arriving
        self._requests: deque[bytes] = deque()
        self._waiting_bytes = 0  # of the requests that wait for the handler
        self._unacknowledged = 0
        self._arrival = asyncio.Event()  # set once there is a request, or will be none any more
        self._room = asyncio.Event()  # set while the caller takes its answers
        self._room.set()
        self._task = connection.front.loop.create_task(self._run())

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Takes a part of the requests, and hands over those that are complete."""
        self.request_ended = ended
        self._part += data
        self._unacknowledged += len(data)
        self.connection.hold(self, len(data))
        try:
            self._cut_messages()
        except RequestError as error:
            self.refuse(error)
            return
        if self.done:
            return
        if ended and self._part:
            self.refuse(InvalidRequest("the stream ended in the middle of a message"))
            return
        self._acknowledge()
        if ended:
            self.waits_since = None
        if self._requests or ended:
            self._arrival.set()

    async def write(self, message: bytes) -> None:
        """Sends one answer; returns when there is room for the next."""
        if self.done:
            raise asyncio.CancelledError
        try:
            if not self._begun:
                self._begun = True
                self._dialect.begin(self.connection.engine, self.stream_id, self.head)
            self._dialect.write(self.connection.engine, self.stream_id, message)
        except Http2Error:  # the connection is closing
            raise asyncio.CancelledError from None
        self.connection.flush_soon()
        if not self._has_room():
            self._room.clear()
            self.connection.blocked.add(self)
            await self._room.wait()

    def resume(self) -> bool:
        """Lets a blocked handler go on if the caller has taken enough of its answers, or has gone."""
        if self.done or self._has_room():
            self._room.set()
        return self._room.is_set()

    def _send_error(self, error: RequestError) -> None:
        if self._begun:
            self._dialect.break_off(self.connection.engine, self.stream_id, error)
        else:
            super()._send_error(error)

    def _has_room(self) -> bool:
        return self.connection.engine.queued(self.stream_id) <= STREAM_ANSWER_BYTES

    def cancel(self) -> None:
        """Ends the work for a caller who has gone."""
        super().cancel()
        self._room.set()

    async def _run(self) -> None:
        try:
            await self._handler.run(self._take_requests(), self.write, self.call)
            self._end()
        except RequestError as error:
            release_frames(error)
            self.fail(error)
        except Exception:
            self._report_bug()

    async def _take_requests(self) -> AsyncIterator[bytes]:
        """Yields the requests as they arrive."""
        while True:
            await self._arrival.wait()
            while self._requests:
                if not len(self._requests) % _REQUESTS_IN_A_ROW:
                    await asyncio.sleep(0)  # a handler that never waits would hold the event loop for all that have arrived
                message = self._requests.popleft()
                self._waiting_bytes -= len(message) + _MESSAGE_OVERHEAD
                self.connection.hold(self, -len(message) - _MESSAGE_OVERHEAD)
                self._acknowledge()
                yield message
            if self.request_ended:
                return
            self._arrival.clear()

    def _cut_messages(self) -> None:
        """Moves complete messages from the part to the requests. Raises RequestError."""
        limit = self.message_limit
        while len(self._part) >= PREFIX_BYTES:  # `hold` may refuse the call, which clears the part
            _, size = read_prefix(self._part, limit)
            end = PREFIX_BYTES + size
            if len(self._part) < end:
                break
            message = read_only_message(self._part[:end], self.head.fields.get(b"grpc-encoding", b""), limit)
            del self._part[:end]
            self._requests.append(message)
            self._waiting_bytes += len(message) + _MESSAGE_OVERHEAD
            self.connection.hold(self, len(message) + _MESSAGE_OVERHEAD - end)
            self.waits_since = None
        if self._part and self.waits_since is None:
            self.waits_since = self.connection.heard

    def _acknowledge(self) -> None:
        """Lets the caller send on, unless many of its requests wait for the handler (backpressure)."""
        if self._unacknowledged and self._waiting_bytes < STREAM_WINDOW:
            self.connection.acknowledge(self.stream_id, self._unacknowledged)
            self._unacknowledged = 0

    def _close(self) -> bool:
        """Also gives back what the requests take that nobody will read."""
        if not super()._close():
            return False
        self._requests.clear()
        self._part.clear()
        self.connection.acknowledge(self.stream_id, self._unacknowledged)
        self._unacknowledged = 0
        return True

    def _end(self) -> None:
        """Ends the call; its answers have all been queued."""
        if self._close():
            with contextlib.suppress(Http2Error):  # the caller has gone meanwhile
                if not self._begun:
                    self._dialect.begin(self.connection.engine, self.stream_id, self.head)
                self._dialect.end(self.connection.engine, self.stream_id)
            self.connection.answered(self)
