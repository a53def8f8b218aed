"""HTTP/2 without sockets: bytes of a client in, events out; answers in, bytes for the client out.

This is the only module of the service that uses ngh2, a binding of libnghttp2. Another binding could replace it here.
(The load test has a client on ngh2 in one module of its own.)
"""

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    Event,
    GoAwayReceived,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
)
from ngh2 import NGH2Error as Http2Error
from ngh2 import TrailersReceived as RequestEnded

from serving.transport.http2_front.limits import Limits

__all__ = [
    "ConnectionClosed",
    "DataReceived",
    "Engine",
    "GoAwayReceived",
    "Http2Error",
    "RequestEnded",
    "RequestReceived",
    "SettingsReceived",
    "StreamClosed",
    "StreamReset",
]

Headers = list[tuple[bytes, bytes]]

STREAM_WINDOW = 1 << 20
"""Bytes of a request stream that a client may send ahead of its handler."""

# The window of a connection never binds: with a smaller one, a stream whose handler is slow would stop all others.
_CONNECTION_WINDOW = (1 << 31) - 1

# Headers above the limit get an answer, up to this multiple of it. Larger ones end the connection.
_HEADER_SLACK = 4

_MAX_HEADERS = 128
_UNLIMITED = 1 << 32
_MAX_UNSENT_ACKNOWLEDGEMENTS = 1000  # of PING and SETTINGS; more is a flood

ENHANCE_YOUR_CALM = int(ngh2.ErrorCode.ENHANCE_YOUR_CALM)
NO_ERROR = int(ngh2.ErrorCode.NO_ERROR)


class Engine:
    """The server's end of one HTTP/2 connection.

    Every method may raise Http2Error: the connection can't go on, or the stream has ended meanwhile.
    """

    def __init__(self, limits: Limits):
        """Prepares the server's first frames."""
        self._connection = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                auto_window_update=False,
                max_inbound_header_list_size=_HEADER_SLACK * limits.header_bytes,
                max_inbound_header_count=_MAX_HEADERS,
                max_outbound_ack=_MAX_UNSENT_ACKNOWLEDGEMENTS,
                stream_reset_rate_limit=(_UNLIMITED, _UNLIMITED),  # connection.py counts them
            ),
        )
        self._sent = 0
        self._connection.initiate_connection(
            {
                ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.calls_per_connection,
                ngh2.Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.header_bytes,
            }
        )
        self._connection.set_local_window_size(_CONNECTION_WINDOW)

    def receive(self, data: memoryview) -> list[Event]:
        """Takes bytes of the client and returns what they mean."""
        self._connection.receive_data(data)
        return self._connection.events()

    def events(self) -> list[Event]:
        """Returns the events that sending has caused, such as the end of a stream."""
        return self._connection.events()

    def to_send(self, amount: int) -> bytes:
        """Returns up to about `amount` bytes for the client; empty when there are none, or its windows are full."""
        return self._connection.data_to_send(amount)

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Lets the client send `size` more bytes on a stream."""
        self._connection.acknowledge_received_data(size, stream_id)

    def respond(self, stream_id: int, headers: Headers, *, ends: bool = False) -> None:
        """Sends the headers of an answer; `ends` if they are all of it."""
        self._connection.send_response(stream_id, headers, end_stream=ends)

    def send(self, stream_id: int, data: bytes, *, ends: bool = False) -> None:
        """Queues a part of an answer's body."""
        self._connection.send_data(stream_id, data, end_stream=ends)
        self._sent += len(data)

    def send_trailers(self, stream_id: int, headers: Headers) -> None:
        """Ends an answer with trailers, which go out after its body."""
        self._connection.send_trailers(stream_id, headers)

    def reset(self, stream_id: int, error_code: int) -> None:
        """Ends a stream at once, with what is queued for it."""
        self._connection.reset_stream(stream_id, error_code)

    def ping(self) -> None:
        """Asks the client for a sign of life."""
        self._connection.ping()

    def announce_shutdown(self) -> None:
        """Asks the client to open no more streams. Streams that are on their way are still answered."""
        self._connection.send_shutdown_notice()

    def shut_down(self, last_stream_id: int, error_code: int = NO_ERROR) -> None:
        """Tells the client that no stream after `last_stream_id` will be answered."""
        self._connection.send_goaway(error_code, last_stream_id=last_stream_id)

    def queued(self, stream_id: int | None = None) -> int:
        """Returns the bytes of answers that wait for the client, on one stream or on all."""
        return self._connection.queued_body_size(stream_id)

    @property
    def delivered(self) -> int:
        """Bytes of answers that `to_send` has handed out, or that ended with their stream."""
        return self._sent - self.queued()

    @property
    def finished(self) -> bool:
        """True once the connection can neither receive nor send."""
        return not (self._connection.want_read or self._connection.want_write)
