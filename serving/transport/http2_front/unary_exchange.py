"""A call with one request and one answer: the request is gathered, read and answered."""

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING

from serving.api.dispatch import release_frames
from serving.call import Call, Pending
from serving.errors import RequestError, TooLarge
from serving.transport.http2_front.dialect import Dialect
from serving.transport.http2_front.engine import Http2Error
from serving.transport.http2_front.exchange import Exchange
from serving.transport.http2_front.framing import PREFIX_BYTES
from serving.transport.http2_front.head import Head
from serving.transport.routes import Unary

if TYPE_CHECKING:
    from serving.transport.http2_front.connection import Connection

_BASE64_GROWTH = 4 / 3  # of a body in gRPC-Web text; the dialect checks the message itself


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

    def refuse(self, error: RequestError) -> None:
        """Ends the call; the dispatcher counts it if it has the request already."""
        if self._pending or self._task:
            self._end_early(error)
        else:
            super().refuse(error)

    def _begin(self) -> None:
        """Reads the complete request and hands it to the handler."""
        body, self._body = self._body, b""
        self.waits_since, self.request_ended = None, True
        self.connection.hold(self, self.head.size - self.held)
        if len(body) > self.head.read_at_once and (self.head.is_compressed or self._dialect.reads_base64):
            self._task = self.connection.front.loop.create_task(self._read_aside(body))
            return
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

    async def _read_aside(self, body: bytes | bytearray) -> None:
        """Reads a request off the event loop: a kilobyte of gzip may hold a megabyte, and base64 takes time by the byte."""
        routes = self.connection.front.routes
        read = functools.partial(self._dialect.read, body, self.head, self.message_limit)
        try:
            message = await routes.dispatcher.side_thread.run(read, len(body), self.call)
        except RequestError as error:
            release_frames(error)
            routes.refuse(self.head.path, error, self.call.peer)
            self.fail(error)
        except asyncio.CancelledError:
            routes.dispatcher.count_cancelled(routes.name(self.head.path), self.call)
            raise
        except Exception:
            self._report_bug()
        else:
            del body, read
            await self._run(message)

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

    def succeed(self, message: bytes) -> None:
        """Ends the call with its answer."""
        if self._close():
            with contextlib.suppress(Http2Error):  # the caller has gone meanwhile
                self._dialect.answer(self.connection.engine, self.stream_id, self.head, message)
            self.connection.answered(self, with_success=True)
