"""Valid conversations of clients with the front, as lists of frames."""

import base64
import gzip
import json
import struct
from random import Random
from typing import NamedTuple

import ngh2

from tests.fuzz.http2.handlers import PATHS, STREAMS
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
    literal,
)

_WITH_PRIORITY = 0x20  # flag of HEADERS

_MEDIA_TYPES = ["application/grpc"] * 6 + [
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/proto",
    "application/json",
    "text/plain",
]

_POST, _GET = b"\x83", b"\x82"  # entries of HPACK's static table. Source: RFC 7541, appendix A.

_LONG_BYTES = 300_000  # a message that needs many frames; a few of them fill the buffer of requests


class Frame(NamedTuple):
    """One frame, in the order of `frame`'s arguments."""

    kind: int
    flags: int
    stream: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Returns the bytes on the wire."""
        return frame(*self)


def conversation(random: Random) -> list[Frame]:
    """Returns the frames of a client after its preface: settings, and some calls whose frames are interleaved."""
    frames = [Frame(SETTINGS, 0, 0, _settings(random)), Frame(SETTINGS, ACK, 0)]
    calls = []
    fields = _fields(random)
    for number in range(random.randint(1, 6)):
        if random.random() < 0.6:  # else the headers of the last call again, as most clients send them
            fields = _fields(random)
        calls.append(_call(random, 2 * number + 1, fields))
    waiting = [0]  # streams must begin in their order
    while any(calls):
        open_calls = [number for number, call in enumerate(calls) if call and number <= waiting[0]]
        number = random.choice(open_calls)
        frames.append(calls[number].pop(0))
        while calls[number] and calls[number][0].kind == CONTINUATION:  # nothing may come between
            frames.append(calls[number].pop(0))
        if number == waiting[0]:
            waiting[0] += 1
        if random.random() < 0.15:
            frames.append(_control(random, 2 * number + 1))
    if random.random() < 0.1:
        frames.append(Frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)))
    return frames


def library_conversation(random: Random) -> list[Frame]:
    """Returns a conversation as libnghttp2 writes it, with Huffman codes and the dynamic table of HPACK."""
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection({})
    for _ in range(random.randint(1, 6)):
        headers = [(b":method", b"POST"), *_fields(random), (b"x-trace", b"%d" % random.randrange(3))]
        stream = client.send_request(headers, end_stream=False)
        client.send_data(stream, grpc_message(random.randbytes(random.randint(0, 300))), end_stream=True)
    encoded = b""
    while out := client.data_to_send():
        encoded += out
    return parse_frames(encoded[len(PREFACE) :])


def parse_frames(encoded: bytes) -> list[Frame]:
    """Cuts bytes into whole frames."""
    frames, start = [], 0
    while start < len(encoded):
        end = start + 9 + int.from_bytes(encoded[start : start + 3])
        stream = int.from_bytes(encoded[start + 5 : start + 9])
        frames.append(Frame(encoded[start + 3], encoded[start + 4], stream, encoded[start + 9 : end]))
        start = end
    return frames


def _settings(random: Random) -> bytes:
    windows = (0, 1, 100, 65535, (1 << 31) - 1)
    values = {1: (0, 100, 4096, 1 << 20), 2: (0, 1), 3: (0, 1, 100), 4: windows, 5: (1 << 14, 1 << 20)}
    chosen = random.sample(sorted(values), random.randint(0, 3))
    return b"".join(struct.pack(">HI", key, random.choice(values[key])) for key in chosen)


def _control(random: Random, stream: int) -> Frame:
    """Returns a frame that may come at any time."""
    return random.choice(
        [
            Frame(PING, 0, 0, random.randbytes(8)),
            Frame(PING, ACK, 0, random.randbytes(8)),
            Frame(SETTINGS, 0, 0, _settings(random)),
            Frame(WINDOW_UPDATE, 0, random.choice((0, stream)), struct.pack(">I", random.choice((1, 1000, 1 << 20)))),
            Frame(PRIORITY, 0, stream, struct.pack(">IB", stream + 2, 16)),
            Frame(RST_STREAM, 0, stream, struct.pack(">I", 8)),
            Frame(random.randint(10, 255), random.randrange(256), random.choice((0, stream)), random.randbytes(20)),
        ]
    )


def _call(random: Random, stream: int, fields: list[tuple[bytes, bytes]]) -> list[Frame]:
    """Returns the frames of one call with these headers."""
    block = b"".join(literal(name, value) for name, value in fields)
    block = random.choice([_POST] * 19 + [_GET]) + block
    body = _body(random, dict(fields))
    flags = 0 if body else END_STREAM
    frames = _headers(random, stream, block, flags)
    cuts = sorted(random.randrange(len(body)) for _ in range(random.choice((0, 0, 1, 4)))) if body else []
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        for at in range(start, end, 1 << 14):
            part = body[at : min(at + (1 << 14), end)]
            pad = random.choice((0, 0, 0, 9)) if len(part) < 16_000 else 0
            padded = bytes([pad]) + part + bytes(pad) if pad else part
            frames.append(Frame(DATA, PADDED if pad else 0, stream, padded))
    if body and random.random() < 0.1:
        frames.append(Frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(b"x-trailer", b"1")))
    elif body and random.random() < 0.95:
        last = frames.pop()
        frames.append(last._replace(flags=last.flags | END_STREAM))
    if random.random() < 0.1:
        frames.append(Frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
    return frames


def _fields(random: Random) -> list[tuple[bytes, bytes]]:
    fields = [
        (":scheme", "http"),
        (":path", random.choice(PATHS)),
        (":authority", "digits"),
        ("content-type", random.choice(_MEDIA_TYPES)),
        ("te", "trailers"),
    ]
    more = [
        ("grpc-timeout", random.choice(("1n", "50u", "1S", "99999999H"))),
        ("grpc-encoding", random.choice(("gzip", "gzip", "gzip", "identity", "br"))),
        ("x-key-bin", "AAEC"),
        ("accept", "*/*"),
        ("origin", "https://desk.example"),
        ("x-long", "v" * random.choice((10, 200, 3000, 5000))),
        ("connect-timeout-ms", "1000"),
        ("cookie", "a=b"),
    ]
    fields += random.sample(more, random.choice((0, 0, 1, 2)))
    return [(name.encode(), value.encode()) for name, value in fields]


def _headers(random: Random, stream: int, block: bytes, flags: int) -> list[Frame]:
    """Cuts a block of headers into frames."""
    if random.random() < 0.8:
        first, rest = block, b""
    else:
        cut = random.randrange(len(block))
        first, rest = block[:cut], block[cut:]
    payload = first
    if random.random() < 0.1:
        payload, flags = struct.pack(">IB", random.choice((0, stream + 2)), 16) + payload, flags | _WITH_PRIORITY
    if random.random() < 0.1:
        payload, flags = b"\x05" + payload + bytes(5), flags | PADDED
    if not rest:
        return [Frame(HEADERS, flags | END_HEADERS, stream, payload)]
    return [Frame(HEADERS, flags, stream, payload), Frame(CONTINUATION, END_HEADERS, stream, rest)]


def _body(random: Random, fields: dict[bytes, bytes]) -> bytes:
    """Returns the messages of a call, mostly as its media type and its path ask for them."""
    media_type = fields[b"content-type"].decode() if random.random() < 0.95 else random.choice(_MEDIA_TYPES)
    if media_type == "application/json":
        return json.dumps({"service": "x" * random.choice((0, 5, 784, 70_000))}).encode()
    if media_type == "application/proto":
        return bytes(random.choice((0, 3)))
    streams = fields[b":path"].decode() in STREAMS
    count = random.choice((1, 3, 20)) if streams else random.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2))
    compressed = fields.get(b"grpc-encoding") == b"gzip"
    body = b"".join(_message(random, compressed=compressed) for _ in range(count))
    return base64.b64encode(body) if media_type.endswith("-text") else body


def _message(random: Random, *, compressed: bool) -> bytes:
    size = random.choice((0, 0, 3, 50, 784, 785, 787, _LONG_BYTES if random.random() < 0.15 else 100))
    if compressed or random.random() < 0.02:
        return grpc_message(gzip.compress(bytes(size), 1), flags=1)
    return grpc_message(bytes(size))
