"""Floods of HTTP/2 frames and of connections. Only the front http2 promises to bear them: see deploy/SECURITY.md."""

import asyncio
import contextlib
import itertools
import os
import struct
from collections import Counter
from collections.abc import Callable

from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.robustness.attacker import DIGITS, OPENING, close, flood, open_raw
from tests.robustness.case import Attack, Case
from tests.robustness.target import Target
from tests.support.http2_client import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    grpc_message,
    header_block,
    literal,
)
from tests.support.http2_wire import CANCEL, number, settings

_SECONDS = 1.5
_HEADERS = header_block(f"{DIGITS}/Recognize")
_IMAGE = grpc_message(pb.RecognizeRequest(image=bytes(784)).SerializeToString())
_CALL = frame(HEADERS, END_HEADERS, 1, _HEADERS)
_MANY = 200

# Settings of HTTP/2. Source: RFC 9113, 6.5.2.
_TABLE_SIZE, _MAX_STREAMS, _WINDOW = 1, 3, 4


def _of_frames(piece: Callable[[int], bytes], first: bytes = b"") -> Attack:
    async def attack(target: Target) -> Counter[str]:
        sent = await flood(target.port, piece, _SECONDS, first)
        return Counter(sent=sent)

    return attack


def _reset(piece: int, *, with_message: bool) -> bytes:
    """Begins and cancels calls."""
    out = []
    for stream in range(200 * piece + 1, 200 * piece + 201, 2):
        out.append(frame(HEADERS, END_HEADERS, stream, _HEADERS))
        if with_message:
            out.append(frame(DATA, END_STREAM, stream, _IMAGE))
        out.append(frame(RST_STREAM, 0, stream, number(CANCEL)))
    return b"".join(out)


def _references(piece: int) -> bytes:
    """Begins a call with one large header, which the table of HPACK keeps, and thousands of references to the header."""
    large = literal(b"x-large", b"v" * 3900)
    indexed = b"\x40" + large[1:]  # with incremental indexing. Source: RFC 7541, 6.2.1
    return frame(HEADERS, END_HEADERS | END_STREAM, 2 * piece + 1, _HEADERS + indexed + b"\xbe" * 8000)


# Conversations that end at their first bytes, or soon after.
_BROKEN = (
    b"GET / HTTP/1.1\r\nHost: digits\r\n\r\n",
    PREFACE[:10],
    b"\x16\x03\x01" + bytes(200),
    PREFACE + frame(SETTINGS, 0, 0, b"abc"),
    OPENING + frame(HEADERS, END_HEADERS, 2, _HEADERS),
    OPENING + _CALL + frame(DATA, END_STREAM, 1, b"\x05\0\0\0\1a"),
    OPENING + _CALL + frame(DATA, END_STREAM, 1, grpc_message(b"no gzip", 1)),
    OPENING + _CALL + frame(DATA, END_STREAM, 1, b"\0\xff\xff\xff\xffabc"),
    OPENING + _CALL + frame(DATA, END_STREAM, 1, b"\0\0\0"),
    OPENING + b"\xff\xff\xff" + bytes(5) + b"\1",
)


async def _garbage(target: Target) -> Counter[str]:
    """Connects again and again, sends what is no HTTP/2 or a broken call, and leaves."""
    sent = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + _SECONDS
    for broken in itertools.cycle(_BROKEN):
        if loop.time() > end:
            break
        for opening in (broken, os.urandom(500), OPENING + os.urandom(300), OPENING + frame(HEADERS, 4, 1, os.urandom(60))):
            with contextlib.suppress(OSError):
                _, writer = await open_raw(target.port, opening)
                writer.close()
                sent += 1
    return Counter(sent=sent)


async def _connections(target: Target) -> Counter[str]:
    """Opens connections and closes them at once, without a byte."""
    sent = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + _SECONDS
    while loop.time() < end:
        with contextlib.suppress(OSError):
            _, writer = await open_raw(target.port, b"")
            await close(writer)
            sent += 1
    return Counter(sent=sent)


def _flood(name: str, attack: Attack) -> Case:
    return Case(name, attack, fronts=("http2",))


CASES = (
    _flood("calls cancelled after their message", _of_frames(lambda piece: _reset(piece, with_message=True))),
    _flood("calls cancelled before their message", _of_frames(lambda piece: _reset(piece, with_message=False))),
    _flood("SETTINGS", _of_frames(lambda _: settings((_MAX_STREAMS, 100)) * _MANY)),
    _flood("PING", _of_frames(lambda _: frame(PING, 0, 0, b"12345678") * _MANY)),
    _flood("empty DATA", _of_frames(lambda _: frame(DATA, 0, 1) * _MANY, _CALL)),
    _flood(
        "WINDOW UPDATE beyond the largest window", _of_frames(lambda _: frame(WINDOW_UPDATE, 0, 0, number(2**31 - 1)) * 10)
    ),
    _flood("WINDOW UPDATE by one byte", _of_frames(lambda _: frame(WINDOW_UPDATE, 0, 1, number(1)) * _MANY, _CALL)),
    _flood("PRIORITY", _of_frames(lambda _: frame(PRIORITY, 0, 1, struct.pack(">IB", 3, 16)) * _MANY)),
    _flood(
        "CONTINUATION without an end",
        _of_frames(lambda _: frame(CONTINUATION, 0, 1, literal(b"x-a", b"b" * 200) * 60), frame(HEADERS, 0, 1, _HEADERS)),
    ),
    _flood("empty CONTINUATION", _of_frames(lambda _: frame(CONTINUATION, 0, 1) * _MANY, frame(HEADERS, 0, 1, _HEADERS))),
    _flood("references of HPACK", _of_frames(_references)),
    _flood("unknown frames", _of_frames(lambda _: frame(0xFA, 255, 0, bytes(1000)) * 20)),
    _flood("changes of the table of HPACK", _of_frames(lambda piece: settings((_TABLE_SIZE, piece % 2 * 4096)) * 100)),
    _flood(
        "changes of the window",
        _of_frames(
            lambda _: settings((_WINDOW, 0)) + settings((_WINDOW, 2**31 - 1)),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, _HEADERS),
        ),
    ),
    _flood("broken conversations", _garbage),
    _flood("connections closed at once", _connections),
)
