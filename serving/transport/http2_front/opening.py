"""Begins calls: from the headers of a request to its exchange. A request that is no call gets its answer here."""

import math
import time
from typing import TYPE_CHECKING

from serving.call import Call
from serving.errors import TooLarge, Unsupported
from serving.transport.http2_front.dialect import Dialect, StreamDialect
from serving.transport.http2_front.engine import Headers
from serving.transport.http2_front.exchange import Exchange
from serving.transport.http2_front.head import Head
from serving.transport.http2_front.streaming_exchange import StreamingExchange
from serving.transport.http2_front.unary_exchange import UnaryExchange
from serving.transport.routes import Unary

if TYPE_CHECKING:
    from serving.transport.http2_front.connection import Connection
    from serving.transport.http2_front.front import Http2Front


def open_exchange(connection: "Connection", stream_id: int, head: Head, dialect: Dialect) -> Exchange:
    """Begins a call.

    Raises:
        RequestError: the call is refused before its message is read.
    """
    front = connection.front
    if head.size > front.limits.header_bytes:
        front.count_limit("header_bytes")
        raise TooLarge(f"the headers are {head.size} bytes, this server takes {front.limits.header_bytes}")
    front.make_room_for_call(connection)
    timeout = dialect.timeout(head)
    handler, client = front.routes.find(head.path, head.metadata)
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    call = Call(deadline, client, None, connection.peer, head.metadata)
    if isinstance(handler, Unary):
        exchange: Exchange = UnaryExchange(connection, stream_id, head, dialect, call, dialect.adapt(head.path, handler))
    elif isinstance(dialect, StreamDialect):
        exchange = StreamingExchange(connection, stream_id, head, dialect, call, handler)
    else:
        raise Unsupported("this protocol calls only methods with one request and one answer; use gRPC")
    if timeout is not None:
        exchange.end_after(timeout)
    return exchange


def answer_to_no_call(front: "Http2Front", head: Head) -> Headers:
    """Returns the headers that answer a request of another HTTP method or media type than calls have."""
    if head.method == b"OPTIONS" and (preflight := front.cors.preflight(head)):
        return preflight
    if head.method != b"POST":
        return [(b":status", b"405"), (b"allow", b"POST")]
    return [(b":status", b"415"), (b"accept-post", b", ".join(front.dialects))]
