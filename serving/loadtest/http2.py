"""An HTTP/2 connection of the load test: whole requests out, whole responses in. Only this module uses ngh2 here."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import cast

import ngh2

Headers = list[tuple[bytes, bytes]]

_WINDOW = (1 << 31) - 1  # the largest that HTTP/2 allows: a load test reads all answers at once


class ConnectionLost(Exception):
    """The connection or the stream ended before its response. The message gives the reason."""


@dataclass
class Response:
    """A response: status of HTTP, and body."""

    status: int = 0
    body: bytearray = field(default_factory=bytearray)


class Http2Connection(asyncio.Protocol):
    """A client's end of one connection, for many requests at the same time. Create it with loop.create_connection."""

    def __init__(self) -> None:
        """Prepares the client's first frames."""
        self._engine = ngh2.Connection(ngh2.Role.CLIENT)
        self._engine.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: _WINDOW, ngh2.Setting.ENABLE_PUSH: 0})
        self._engine.set_local_window_size(_WINDOW)
        self._open: dict[int, tuple[Response, asyncio.Future[Response]]] = {}
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    @property
    def usable(self) -> bool:
        """True if the connection takes requests: it is open, and the server has not announced its end."""
        return self._transport is not None and self._engine.can_send_request

    async def request(self, headers: Headers, body: bytes) -> Response:
        """Sends a request and waits for its response. Raises ConnectionLost. If cancelled, resets the stream."""
        response, ended = Response(), asyncio.get_running_loop().create_future()
        try:
            stream_id = self._engine.send_request(headers)
            self._engine.send_data(stream_id, body, end_stream=True)
        except ngh2.NGH2Error as error:
            raise ConnectionLost(str(error)) from None
        self._open[stream_id] = response, ended
        self._send()
        try:
            await ended
        except asyncio.CancelledError:
            with contextlib.suppress(ngh2.NGH2Error):  # the connection has ended, too
                self._engine.reset_stream(stream_id, ngh2.ErrorCode.CANCEL)
                self._send()
            raise
        finally:
            self._open.pop(stream_id, None)
        return response

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.abort()  # nothing is left to say, and an end of TLS may take half a minute

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first frames."""
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Takes bytes of the server."""
        try:
            self._engine.receive_data(data)
            for event in self._engine.events():
                self._take(event)
            self._send()
        except ngh2.NGH2Error:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the requests that have no response."""
        self._transport = None
        self.closed.set()
        for _, ended in self._open.values():
            _fail(ended, "the connection was closed")

    def _take(self, event: ngh2.Event) -> None:
        match event:
            case ngh2.DataReceived():
                if found := self._open.get(event.stream_id):
                    found[0].body += event.data
            case ngh2.ResponseReceived():
                if found := self._open.get(event.stream_id):
                    found[0].status = int(dict(event.headers)[b":status"])
            case ngh2.StreamClosed():
                if found := self._open.get(event.stream_id):
                    response, ended = found
                    if event.error_code:
                        _fail(ended, f"the stream was reset: {event.error_code}")
                    elif not ended.done():
                        ended.set_result(response)

    def _send(self) -> None:
        while self._transport is not None and (out := self._engine.data_to_send()):
            self._transport.write(out)
        if not (self._engine.want_read or self._engine.want_write):
            self.close()


def _fail(ended: "asyncio.Future[Response]", reason: str) -> None:
    if not ended.done():
        ended.set_exception(ConnectionLost(reason))
