"""RFC 9113, chapters 3 and 4: the preface, the format and the size of frames, and header blocks."""

import pytest

from serving.process.server import Server
from tests.support.http2_client import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    grpc_message,
    header_block,
)
from tests.support.http2_wire import (
    COMPRESSION_ERROR,
    FRAME_SIZE_ERROR,
    OPENING,
    PROTOCOL_ERROR,
    Answered,
    Case,
    Fatal,
    Ignored,
    call,
    check,
    end,
    headers,
    number,
    settings,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCK = header_block()
RESERVED = 1 << 31  # the bit before a stream's number
UNKNOWN = 0x42  # a type of frames that nobody has defined
TOO_LONG = (1 << 14) + 1
LARGEST = grpc_message(b"\x7a\xf8\x7f" + bytes(16_376))  # a field of no request, 16,376 bytes long: 16,384 in all
assert len(LARGEST) == TOO_LONG - 1


def announced(kind: int, stream: int, size: int) -> bytes:
    """Returns the head of a frame alone: what is left unread when the server closes could cost the client the GOAWAY."""
    return size.to_bytes(3) + frame(kind, 0, stream)[3:9]


CASES = [
    Case("3.4", "no preface", b"", Fatal(None), opening=b"GET / HTTP/2.0\r\nhost: digits\r\n\r\n"),
    Case("3.4", "a preface with a wrong byte", b"", Fatal(None), opening=PREFACE[:-3] + b"X\r\n" + frame(SETTINGS, 0, 0)),
    Case("3.4", "another frame before SETTINGS", b"", Fatal(PROTOCOL_ERROR), opening=PREFACE + frame(PING, 0, 0, bytes(8))),
    Case(
        "3.4", "SETTINGS with ACK as the first frame", b"", Fatal(PROTOCOL_ERROR), opening=PREFACE + frame(SETTINGS, ACK, 0)
    ),
    Case("3.4", "a call together with the preface", call(1), Answered()),
    Case("3.4", "empty SETTINGS", b"", Ignored()),
    Case("4.1", "a frame of an unknown type on stream 0", frame(UNKNOWN, 0xFF, 0, b"what") + call(1), Answered()),
    Case("4.1", "a frame of an unknown type on an idle stream", frame(UNKNOWN, 0, 5, b"what") + call(1), Answered()),
    Case(
        "4.1",
        "a frame of an unknown type on an open stream",
        headers(1) + frame(UNKNOWN, 0, 1, b"what") + end(1),
        Answered(),
    ),
    Case("4.1", "undefined flags of PING", frame(PING, 0xFE, 0, bytes(8)) + call(1), Answered()),
    Case("4.1", "undefined flags of HEADERS", headers(1, flags=END_HEADERS | 0xD2 & ~PADDED) + end(1), Answered()),
    Case("4.1", "undefined flags of DATA", headers(1) + frame(DATA, END_STREAM | 0xF6, 1, bytes(5)), Answered()),
    Case("4.1", "the reserved bit of a call's frames", call(RESERVED | 1), Answered()),
    Case("4.1", "the reserved bit of PING", frame(PING, 0, RESERVED, bytes(8)) + call(1), Answered()),
    Case("4.2", "DATA of the largest size", headers(1) + end(1, LARGEST), Answered()),
    Case("4.2", "an unknown frame of the largest size", frame(UNKNOWN, 0, 0, bytes(1 << 14)) + call(1), Answered()),
    Case(
        "4.2",
        "DATA above the largest size",
        headers(1) + announced(DATA, 1, TOO_LONG),
        Fatal(FRAME_SIZE_ERROR),
        "a stream error would do, but the library reads no frame that it must not",
    ),
    Case("4.2", "HEADERS above the largest size", announced(HEADERS, 1, TOO_LONG), Fatal(FRAME_SIZE_ERROR)),
    Case("4.2", "SETTINGS above the largest size", announced(SETTINGS, 0, 6 * 4096), Fatal(FRAME_SIZE_ERROR)),
    Case("4.2", "an unknown frame above the largest size", announced(UNKNOWN, 0, TOO_LONG), Fatal(FRAME_SIZE_ERROR)),
    Case(
        "4.3",
        "a header block cut into CONTINUATION frames",
        frame(HEADERS, 0, 1, BLOCK[:5])
        + frame(CONTINUATION, 0, 1, BLOCK[5:50])
        + frame(CONTINUATION, END_HEADERS, 1, BLOCK[50:])
        + end(1),
        Answered(),
    ),
    Case("4.3", "a header block that can't be decoded", headers(1, BLOCK + b"\x80"), Fatal(COMPRESSION_ERROR)),
    Case("4.3", "a header block cut off in a header", headers(1, BLOCK[:-1]), Fatal(COMPRESSION_ERROR)),
    Case(
        "4.3",
        "a PRIORITY frame in a header block",
        frame(HEADERS, 0, 1, BLOCK[:9]) + frame(PRIORITY, 0, 1, bytes(5)),
        Fatal(PROTOCOL_ERROR),
    ),
    Case(
        "4.3",
        "HEADERS of another stream in a header block",
        frame(HEADERS, 0, 1, BLOCK[:9]) + frame(HEADERS, END_HEADERS, 3, BLOCK),
        Fatal(PROTOCOL_ERROR),
    ),
]

# Chapter 6 gives each type its length.
LENGTHS = [
    Case(
        "6.3",
        "PRIORITY of 4 bytes",
        headers(1) + frame(PRIORITY, 0, 1, bytes(4)),
        Fatal(FRAME_SIZE_ERROR),
        "a stream error would do; the library ends the connection for every wrong length",
    ),
    Case("6.4", "RST_STREAM of 3 bytes", headers(1) + frame(RST_STREAM, 0, 1, bytes(3)), Fatal(FRAME_SIZE_ERROR)),
    Case("6.4", "RST_STREAM of 5 bytes", headers(1) + frame(RST_STREAM, 0, 1, bytes(5)), Fatal(FRAME_SIZE_ERROR)),
    Case("6.5", "SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, bytes(5)), Fatal(FRAME_SIZE_ERROR)),
    Case("6.5", "ACK of SETTINGS with a payload", frame(SETTINGS, ACK, 0, bytes(6)), Fatal(FRAME_SIZE_ERROR)),
    Case("6.7", "PING of 6 bytes", frame(PING, 0, 0, bytes(6)), Fatal(FRAME_SIZE_ERROR)),
    Case("6.7", "PING of 9 bytes", frame(PING, 0, 0, bytes(9)), Fatal(FRAME_SIZE_ERROR)),
    Case("6.8", "GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, bytes(7)), Fatal(FRAME_SIZE_ERROR)),
    Case("6.9", "WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, bytes(3)), Fatal(FRAME_SIZE_ERROR)),
    Case(
        "6.9",
        "WINDOW_UPDATE of 5 bytes on a stream",
        headers(1) + frame(WINDOW_UPDATE, 0, 1, number(1) + b"\0"),
        Fatal(FRAME_SIZE_ERROR),
    ),
]


@pytest.mark.parametrize("case", [*CASES, *LENGTHS], ids=str)
async def test_frames_are_answered_as_the_rfc_says(wire_server: Server, case: Case) -> None:
    await check(wire_server.grpc_port, case)


async def test_a_connection_that_never_acknowledges_settings_is_answered(wire_server: Server) -> None:
    await check(wire_server.grpc_port, Case("6.5.3", "", settings() + call(1), Answered(), opening=OPENING))
