"""RFC 9113, chapter 5 and the frames of streams in chapter 6: states, identifiers, DATA, HEADERS, PRIORITY, RST_STREAM."""

import struct

import pytest

from serving.process.server import Server
from tests.support.http2_client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    header_block,
)
from tests.support.http2_wire import (
    CANCEL,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    WATCH,
    Answered,
    Case,
    Fatal,
    Ignored,
    Reset,
    call,
    check,
    end,
    fields,
    headers,
    number,
    wire,
)
from tests.transport.http2_front.conftest import CALLS_PER_CONNECTION

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK = header_block()
WITH_PRIORITY = 0x20  # flag of HEADERS
NO_POST = fields(method="GET")  # answered before the request ends
RESET = frame(RST_STREAM, 0, 1, number(CANCEL))


def priority(dependency: int, weight: int = 15) -> bytes:
    return struct.pack(">IB", dependency, weight)


CLOSED_BY_RESET = "a client may have sent frames before it read our answer, so the library ignores them on closed streams"

STATES = [
    Case("5.1", "idle: DATA", frame(DATA, END_STREAM, 1, b"x"), Fatal(PROTOCOL_ERROR)),
    Case("5.1", "idle: RST_STREAM", RESET, Fatal(PROTOCOL_ERROR)),
    Case("5.1", "idle: WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 1, number(1)), Fatal(PROTOCOL_ERROR)),
    Case("5.1", "idle: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, BLOCK), Fatal(PROTOCOL_ERROR)),
    Case("5.1", "idle: PRIORITY", frame(PRIORITY, 0, 1, priority(0)) + call(1), Answered()),
    Case(
        "5.1",
        "half-closed: DATA",
        headers(1, fields(path=WATCH)) + end(1) + frame(DATA, 0, 1, b"x"),
        Fatal(STREAM_CLOSED),
        "a stream error would do; the library ends the connection, as its peer has lost track",
    ),
    Case(
        "5.1",
        "half-closed: HEADERS",
        headers(1, fields(path=WATCH)) + end(1) + headers(1),
        Fatal(STREAM_CLOSED),
        "a stream error would do; the library ends the connection, as its peer has lost track",
    ),
    Case(
        "5.1",
        "half-closed: CONTINUATION",
        headers(1, fields(path=WATCH)) + end(1) + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        Fatal(PROTOCOL_ERROR),
    ),
    Case("5.1", "closed by RST_STREAM: DATA", headers(1) + RESET + frame(DATA, 0, 1, b"x"), Ignored(), CLOSED_BY_RESET),
    Case("5.1", "closed by RST_STREAM: HEADERS", headers(1) + RESET + headers(1), Ignored(), CLOSED_BY_RESET),
    Case(
        "5.1", "closed by RST_STREAM: WINDOW_UPDATE", headers(1) + RESET + frame(WINDOW_UPDATE, 0, 1, number(1)), Ignored()
    ),
    Case("5.1", "closed by RST_STREAM: RST_STREAM", headers(1) + RESET + RESET, Ignored()),
    Case("5.1", "closed by RST_STREAM: PRIORITY", headers(1) + RESET + frame(PRIORITY, 0, 1, priority(0)), Ignored()),
    Case(
        "5.1",
        "closed by RST_STREAM: CONTINUATION",
        headers(1) + RESET + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        Fatal(PROTOCOL_ERROR),
    ),
    Case("5.1", "a call that is reset together with its headers", headers(1, NO_POST) + RESET, Ignored()),
    Case("5.1", "a call that is reset together with its message", call(1) + RESET, Ignored()),
    Case("5.1.1", "an even stream", call(2), Fatal(PROTOCOL_ERROR)),
    Case(
        "5.1.1",
        "a stream that was skipped",
        headers(5, fields(path=WATCH)) + end(5) + headers(3),
        Ignored(),
        "to the library a skipped stream is a closed one, on which it ignores HEADERS; the RFC asks for a connection error",
    ),
    Case("5.1.1", "streams that leave numbers out", call(1) + call(99), Answered(99)),
    Case(
        "5.1.2",
        "a call above the limit, before our SETTINGS are acknowledged",
        b"".join(headers(2 * count + 1) for count in range(CALLS_PER_CONNECTION + 1)) + end(1),
        Reset(REFUSED_STREAM, 2 * CALLS_PER_CONNECTION + 1),
    ),
    Case(
        "5.1.2",
        "a call above the limit, once our SETTINGS are acknowledged",
        frame(SETTINGS, ACK, 0) + b"".join(headers(2 * count + 1) for count in range(CALLS_PER_CONNECTION + 1)),
        Fatal(PROTOCOL_ERROR),
        "the RFC asks for a stream error; a client that knows the limit and breaks it is broken",
    ),
    Case(
        "5.3.1",
        "HEADERS that depend on their own stream",
        headers(1, priority(1) + BLOCK, END_HEADERS | WITH_PRIORITY),
        Fatal(PROTOCOL_ERROR),
        "RFC 9113 ignores priorities; RFC 7540 asked for a stream error",
    ),
    Case(
        "5.3.1",
        "PRIORITY that depends on its own stream",
        frame(PRIORITY, 0, 1, priority(1)) + call(1),
        Answered(),
        "RFC 9113 ignores priorities; RFC 7540 asked for a stream error",
    ),
]

FRAMES = [
    Case("6.1", "DATA on stream 0", frame(DATA, 0, 0, b"x"), Fatal(PROTOCOL_ERROR)),
    Case("6.1", "padded DATA", headers(1) + frame(DATA, PADDED | END_STREAM, 1, b"\x03" + bytes(5) + bytes(3)), Answered()),
    Case("6.1", "DATA of padding alone", headers(1) + frame(DATA, PADDED, 1, b"\x03" + bytes(3)) + end(1), Answered()),
    Case(
        "6.1",
        "padding as long as the payload",
        headers(1) + frame(DATA, PADDED, 1, b"\x05" + bytes(4)),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "6.1",
        "padding without a length",
        headers(1) + frame(DATA, PADDED, 1),
        Fatal(PROTOCOL_ERROR),
        "h2spec expects FRAME_SIZE_ERROR; the RFC names no code",
    ),
    Case(
        "6.1",
        "padding that is not zero",
        headers(1) + frame(DATA, PADDED | END_STREAM, 1, b"\x01" + bytes(5) + b"x"),
        Answered(),
        "the RFC allows to check",
    ),
    Case("6.1", "empty DATA", headers(1) + frame(DATA, 0, 1) * 5 + end(1), Answered()),
    Case("6.2", "HEADERS on stream 0", headers(0), Fatal(PROTOCOL_ERROR)),
    Case("6.2", "padded HEADERS", headers(1, b"\x04" + BLOCK + bytes(4), END_HEADERS | PADDED) + end(1), Answered()),
    Case(
        "6.2",
        "padding longer than the payload of HEADERS",
        headers(1, bytes([len(BLOCK) + 1]) + BLOCK, END_HEADERS | PADDED),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "6.2", "HEADERS with a priority", headers(1, priority(0) + BLOCK, END_HEADERS | WITH_PRIORITY) + end(1), Answered()
    ),
    Case(
        "6.2",
        "HEADERS too short for their priority",
        headers(1, b"\0\0", END_HEADERS | WITH_PRIORITY),
        Fatal(FRAME_SIZE_ERROR),
    ),
    Case(
        "6.3",
        "PRIORITY on stream 0",
        frame(PRIORITY, 0, 0, priority(1)),
        Ignored(),
        "the RFC asks for a connection error; the library reads no more of PRIORITY than its length",
    ),
    Case("6.3", "PRIORITY on an open stream", headers(1) + frame(PRIORITY, 0, 1, priority(3)) + end(1), Answered()),
    Case("6.4", "RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, number(CANCEL)), Fatal(PROTOCOL_ERROR)),
    Case("6.4", "RST_STREAM with an unknown code", headers(1) + frame(RST_STREAM, 0, 1, number(0xFFFF)), Ignored()),
    Case(
        "6.6",
        "PUSH_PROMISE of a client",
        headers(1) + frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + BLOCK),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "6.9",
        "an increment of 0 on a stream",
        headers(1) + frame(WINDOW_UPDATE, 0, 1, number(0)),
        Fatal(PROTOCOL_ERROR),
        "a stream error would do; the library ends the connection",
    ),
    Case(
        "6.9.1",
        "a window of a stream above 2^31 - 1",
        headers(1) + frame(WINDOW_UPDATE, 0, 1, number((1 << 31) - 1)),
        Fatal(FLOW_CONTROL_ERROR),
        "a stream error would do; the library ends the connection",
    ),
    Case(
        "6.10",
        "CONTINUATION on stream 0",
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 0),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "6.10",
        "CONTINUATION on another stream",
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 3),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "6.10", "DATA instead of CONTINUATION", frame(HEADERS, 0, 1, BLOCK) + frame(DATA, 0, 1, b"x"), Fatal(PROTOCOL_ERROR)
    ),
    Case(
        "6.10",
        "CONTINUATION after the end of the headers",
        headers(1) + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "6.10",
        "CONTINUATION after DATA",
        headers(1) + frame(DATA, 0, 1, b"\0") + frame(CONTINUATION, END_HEADERS, 1, BLOCK),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "6.10",
        "an empty CONTINUATION",
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 1) + end(1),
        Answered(),
    ),
    Case(
        "10.5",
        "many CONTINUATION frames",
        frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, 0, 1) * 9,
        Fatal(None),
        "the RFC sets no limit; the library closes at once for a flood",
    ),
]


@pytest.mark.parametrize("case", [*STATES, *FRAMES], ids=str)
async def test_streams_are_answered_as_the_rfc_says(wire_server: Server, case: Case) -> None:
    await check(wire_server.grpc_port, case)


async def test_the_highest_stream_is_answered(wire_server: Server) -> None:
    highest = (1 << 31) - 1
    async with wire(wire_server.grpc_port) as client:
        await client.assert_answers()
        await client.assert_answers(highest)
        assert client.errors() == []
