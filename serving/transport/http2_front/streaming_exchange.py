"""A call with many requests, many answers, or both, with backpressure in both directions."""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from serving.api.dispatch import release_frames
from serving.call import Call
from serving.errors import InvalidRequest, RequestError
from serving.transport.http2_front.dialect import StreamDialect
from serving.transport.http2_front.engine import STREAM_WINDOW, Http2Error
from serving.transport.http2_front.exchange import Exchange
from serving.transport.http2_front.framing import COMPRESSED, PREFIX_BYTES, cut_message, decompress, read_prefix
from serving.transport.http2_front.head import Head
from serving.transport.http2_front.limits import STREAM_ANSWER_BYTES
from serving.transport.routes import Streaming

if TYPE_CHECKING:
    from serving.transport.http2_front.connection import Connection

_REQUESTS_IN_A_ROW = 64  # of one stream
_MESSAGE_OVERHEAD = 64  # bytes that a waiting request takes beside its content: many small ones are no less a flood


class StreamingExchange(Exchange):
    """A call with many requests, many answers, or both."""

    __slots__ = ("_arrival", "_begun", "_handler", "_part", "_requests", "_room", "_unacknowledged", "_waiting_bytes")

    _dialect: StreamDialect

    def __init__(
        self, connection: "Connection", stream_id: int, head: Head, dialect: StreamDialect, call: Call, handler: Streaming
    ):
        """Starts the handler, which waits for requests."""
        super().__init__(connection, stream_id, head, dialect, call, connection.front.message_limit(handler))
        self.endless = handler.endless
        if not self.endless:  # a caller of recognition may open its stream before it has the first image
            self.waits_since = None
        self._begun = False  # True once the headers of the answers are sent
        self._handler = handler
        self._part = bytearray()  # of the message that is arriving
        self._requests: deque[tuple[bytes, int]] = deque()  # each with its flags
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
                message, flags = self._requests.popleft()
                self._waiting_bytes -= len(message) + _MESSAGE_OVERHEAD
                self.connection.hold(self, -len(message) - _MESSAGE_OVERHEAD)
                self._acknowledge()
                yield await self._decompressed(message) if flags & COMPRESSED else message
            if self.request_ended:
                return
            self._arrival.clear()

    async def _decompressed(self, content: bytes) -> bytes:
        """Decompresses a message off the event loop. Raises RequestError, which ends the stream and is counted here."""
        routes = self.connection.front.routes
        encoding = self.head.fields.get(b"grpc-encoding", b"")
        read = functools.partial(decompress, content, encoding, self.message_limit)
        try:
            return await routes.dispatcher.side_thread.run(read, len(content), self.call)
        except RequestError as error:
            routes.refuse(self.head.path, error, self.call.peer)
            raise

    def _cut_messages(self) -> None:
        """Moves complete messages from the part to the requests. Raises RequestError."""
        limit = self.message_limit
        while len(self._part) >= PREFIX_BYTES:  # `hold` may refuse the call, which clears the part
            flags, size = read_prefix(self._part, limit)
            if len(self._part) < PREFIX_BYTES + size:
                break
            self._requests.append((cut_message(self._part, size), flags))
            self._waiting_bytes += size + _MESSAGE_OVERHEAD
            self.connection.hold(self, _MESSAGE_OVERHEAD - PREFIX_BYTES)
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
