"""RFC 9113, chapter 8: requests that are malformed, each a stream error, and requests that are not."""

import pytest

from serving.process.server import Server
from tests.support.http2_client import CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, frame, header_block, literal
from tests.support.http2_wire import (
    PROTOCOL_ERROR,
    REQUEST,
    STREAM_CLOSED,
    Answered,
    Case,
    Fatal,
    Reset,
    call,
    check,
    end,
    fields,
    headers,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MALFORMED = Reset(PROTOCOL_ERROR)


def trailers(*pairs: tuple[bytes, bytes], flags: int = END_HEADERS | END_STREAM) -> bytes:
    """Returns a call of one message with trailers."""
    return headers(1) + frame(DATA, 0, 1, REQUEST) + frame(HEADERS, flags, 1, b"".join(literal(*pair) for pair in pairs))


CASES = [
    Case("8.1", "trailers", trailers((b"x-sum", b"1")), Answered()),
    Case("8.1", "trailers without END_STREAM", trailers((b"x-sum", b"1"), flags=END_HEADERS), MALFORMED),
    Case("8.1", "a pseudo header in trailers", trailers((b":path", b"/")), MALFORMED),
    Case("8.1", "an unknown pseudo header in trailers", trailers((b":what", b"/")), MALFORMED),
    Case("8.1", "empty trailers", trailers(), Answered()),
    Case(
        "8.1",
        "DATA after trailers",
        trailers((b"x-sum", b"1")) + frame(DATA, 0, 1, b"x"),
        Fatal(STREAM_CLOSED),
        "a stream error would do; the library ends the connection, as its peer has lost track",
    ),
    Case("8.2", "an empty name", call(1, fields(("", "v"))), MALFORMED),
    Case("8.2.1", "a name in upper case", call(1, fields(("X-Name", "v"))), MALFORMED),
    Case("8.2.1", "a pseudo header in upper case", call(1, fields((":Path", "/"), without=":path")), MALFORMED),
    Case("8.2.1", "a space in a name", call(1, fields(("x name", "v"))), MALFORMED),
    Case("8.2.1", "a colon in a name", call(1, fields(("x:name", "v"))), MALFORMED),
    Case("8.2.1", "a control character in a name", call(1, fields(("x\x01", "v"))), MALFORMED),
    Case("8.2.1", "NUL in a value", call(1, fields(("x-name", "a\0b"))), MALFORMED),
    Case("8.2.1", "a line feed in a value", call(1, fields(("x-name", "a\nb"))), MALFORMED),
    Case("8.2.1", "a carriage return in a value", call(1, fields(("x-name", "a\rb"))), MALFORMED),
    Case("8.2.1", "a space before a value", call(1, fields(("x-name", " a"))), MALFORMED),
    Case("8.2.1", "a space after a value", call(1, fields(("x-name", "a "))), MALFORMED),
    Case("8.2.1", "a value in UTF-8", call(1, fields(("x-name", "ä"))), Answered()),
    Case("8.2.1", "an empty value", call(1, fields(("x-name", ""))), Answered()),
    Case("8.2.2", "connection", call(1, fields(("connection", "keep-alive"))), MALFORMED),
    Case("8.2.2", "keep-alive", call(1, fields(("keep-alive", "1"))), MALFORMED),
    Case("8.2.2", "proxy-connection", call(1, fields(("proxy-connection", "keep-alive"))), MALFORMED),
    Case("8.2.2", "transfer-encoding", call(1, fields(("transfer-encoding", "chunked"))), MALFORMED),
    Case("8.2.2", "upgrade", call(1, fields(("upgrade", "h2c"))), MALFORMED),
    Case("8.2.2", "te other than trailers", call(1, fields(te="gzip")), MALFORMED),
    Case("8.2.2", "te with a list", call(1, fields(te="trailers, gzip")), MALFORMED),
    Case("8.2.2", "no te", call(1, fields(without="te")), Answered(), "gRPC asks for te to find proxies that drop trailers"),
    Case("8.2.3", "cookies in several headers", call(1, fields(("cookie", "a=1"), ("cookie", "b=2"))), Answered()),
    Case("8.3", "a pseudo header after a regular one", call(1, fields((":path", "/"), without=":path")), MALFORMED),
    Case("8.3", "an unknown pseudo header", call(1, literal(b":what", b"v") + header_block()), MALFORMED),
    Case("8.3", "a pseudo header of answers", call(1, literal(b":status", b"200") + header_block()), MALFORMED),
    Case("8.3.1", "no :method", call(1, fields(without=":method")), MALFORMED),
    Case("8.3.1", "no :scheme", call(1, fields(without=":scheme")), MALFORMED),
    Case("8.3.1", "no :path", call(1, fields(without=":path")), MALFORMED),
    Case("8.3.1", "no :authority, but host", call(1, fields(("host", "digits"), without=":authority")), Answered()),
    Case(
        "8.3.1",
        "neither :authority nor host",
        call(1, fields(without=":authority")),
        MALFORMED,
        "the RFC allows it; the library asks for one of them",
    ),
    Case("8.3.1", "an empty :path", call(1, fields(path="")), MALFORMED),
    Case("8.3.1", "a :path without a slash", call(1, fields(path="check")), MALFORMED),
    Case("8.3.1", "a :scheme that is none", call(1, fields(scheme="ht tp")), MALFORMED),
    Case("8.3.1", "an empty :method", call(1, fields(method="")), MALFORMED),
    Case("8.3.1", "a space in :authority", call(1, fields(authority="dig its")), MALFORMED),
    Case("8.3.1", "two :method", call(1, literal(b":method", b"POST") + header_block()), MALFORMED),
    Case("8.3.1", "two :scheme", call(1, literal(b":scheme", b"http") + header_block()), MALFORMED),
    Case("8.3.1", "two :path", call(1, literal(b":path", b"/") + header_block()), MALFORMED),
    Case("8.3.1", "two :authority", call(1, literal(b":authority", b"digits") + header_block()), MALFORMED),
    Case("8.3.1", "empty headers", headers(1, b""), MALFORMED),
    Case("8.1.1", "the content-length of the message", call(1, fields(("content-length", "5"))), Answered()),
    Case("8.1.1", "a content-length above the data", call(1, fields(("content-length", "6"))), MALFORMED),
    Case("8.1.1", "a content-length below the data", call(1, fields(("content-length", "4"))), MALFORMED),
    Case(
        "8.1.1",
        "a content-length below the data of two frames",
        headers(1, fields(("content-length", "4"))) + frame(DATA, 0, 1, b"\0\0\0") + frame(DATA, END_STREAM, 1, b"\0\0"),
        MALFORMED,
    ),
    Case(
        "8.1.1",
        "a content-length without data",
        headers(1, fields(("content-length", "5")), END_HEADERS | END_STREAM),
        MALFORMED,
    ),
    Case("8.1.1", "a content-length that is no number", call(1, fields(("content-length", "five"))), MALFORMED),
    Case(
        "8.1.1",
        "two contradictory content-lengths",
        call(1, fields(("content-length", "5"), ("content-length", "6"))),
        MALFORMED,
    ),
    Case("8.5", "CONNECT with a path", call(1, fields(method="CONNECT")), MALFORMED),
    Case(
        "8.5",
        "extended CONNECT, which we do not offer",
        call(1, fields((":protocol", "websocket"), method="CONNECT")),
        MALFORMED,
    ),
    Case(
        "8.1",
        "malformed headers in two frames",
        frame(HEADERS, 0, 1, fields(("X", "v"))) + frame(CONTINUATION, END_HEADERS, 1) + end(1),
        MALFORMED,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_requests_are_answered_as_the_rfc_says(wire_server: Server, case: Case) -> None:
    await check(wire_server.grpc_port, case)
