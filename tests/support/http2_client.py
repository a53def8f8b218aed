"""A client of HTTP/2 for tests: whole calls by libnghttp2, and raw frames for what no client would send."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import ngh2

from tests.support.calls import TIMEOUT

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
ACK = 1


@dataclass
class Response:
    """What came on one stream.

    Attributes:
        headers: headers and trailers, by name.
        blocks: number of header blocks: 1 without trailers.
        body: all data.
        reset: error code of a stream that the server has reset.
        ended: set once the stream has ended.
    """

    headers: dict[str, str] = field(default_factory=dict)
    blocks: int = 0
    body: bytes = b""
    reset: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Http2Client:
    """One connection to a server of a test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: Mapping[int, int]):
        self._reader, self._writer = reader, writer
        self._engine = ngh2.Connection(ngh2.Role.CLIENT)
        self._engine.initiate_connection({ngh2.Setting(key): value for key, value in settings.items()})
        self._responses: dict[int, Response] = {}
        self.goaways: list[int] = []
        self.closed = asyncio.Event()
        self._flush()
        self._reading = asyncio.create_task(self._read())

    def send(self, path: str, body: bytes = b"", *, ends: bool = True, **headers: str) -> tuple[int, Response]:
        """Begins a call; names of headers have _ for -. Returns the stream and what will come on it."""
        fields = {"content-type": "application/grpc", "te": "trailers"}
        fields |= {name.replace("_", "-"): text for name, text in headers.items()}
        pseudo = [(":method", fields.pop("method", "POST")), (":scheme", "http"), (":path", path), (":authority", "digits")]
        encoded = [(name.encode(), text.encode(errors="surrogateescape")) for name, text in [*pseudo, *fields.items()]]
        stream_id = self._engine.send_request(encoded, end_stream=ends and not body)
        self._responses[stream_id] = response = Response()
        if body:
            self._engine.send_data(stream_id, body, end_stream=ends)
        self._flush()
        return stream_id, response

    async def call(self, path: str, body: bytes = b"", **headers: str) -> Response:
        """Makes a call and waits for its end."""
        _, response = self.send(path, body, ends=True, **headers)
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
        return response

    def send_data(self, stream_id: int, body: bytes, *, ends: bool = False) -> None:
        """Sends a part of a request."""
        self._engine.send_data(stream_id, body, end_stream=ends)
        self._flush()

    def reset(self, stream_id: int) -> None:
        """Cancels a call."""
        self._engine.reset_stream(stream_id, ngh2.ErrorCode.CANCEL)
        self._flush()

    def _flush(self) -> None:
        while out := self._engine.data_to_send():
            self._writer.write(out)

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(1 << 16):
                self._engine.receive_data(data)
                for event in self._engine.events():
                    self._handle(event)
                self._flush()
        except (OSError, ngh2.NGH2Error):
            pass
        self.closed.set()
        for response in self._responses.values():
            response.ended.set()

    def _handle(self, event: Any) -> None:
        match event:
            case ngh2.ResponseReceived() | ngh2.TrailersReceived():
                fields = {name.decode(): value.decode() for name, value in event.headers}
                self._responses[event.stream_id].headers |= fields
                self._responses[event.stream_id].blocks += 1
            case ngh2.DataReceived():
                self._responses[event.stream_id].body += event.data
            case ngh2.StreamReset():
                self._responses[event.stream_id].reset = event.error_code
            case ngh2.StreamClosed():
                self._responses[event.stream_id].ended.set()
            case ngh2.GoAwayReceived():
                self.goaways.append(event.error_code)

    async def close(self) -> None:
        """Closes the connection."""
        self._reading.cancel()
        self._writer.close()


@asynccontextmanager
async def http2_client(
    port: int,
    settings: Mapping[int, int] | None = None,
    tls: ssl.SSLContext | None = None,
    local_address: tuple[str, int] | None = None,
) -> AsyncIterator[Http2Client]:
    """Connects to a port of this machine, with `tls` and from `local_address` if given; `settings` are HTTP/2's."""
    connected = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=local_address)
    client = Http2Client(*connected, settings or {})
    try:
        yield client
    finally:
        await client.close()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encodes a frame of HTTP/2. Source: RFC 9113, 4.1."""
    return len(payload).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(path: str = "/grpc.health.v1.Health/Check", **more: str) -> bytes:
    """Encodes the headers of a call, literal and neither indexed nor compressed. Source: RFC 7541, 6.2.2."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "digits"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    fields |= {name.replace("_", "-"): text for name, text in more.items()}
    return b"".join(literal(name.encode(), text.encode()) for name, text in fields.items())


def literal(name: bytes, value: bytes) -> bytes:
    """Encodes one header, literal and not indexed."""
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    """Encodes a string of HPACK without Huffman coding. Source: RFC 7541, 5.1 and 5.2."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, encoded = len(text) - 127, bytearray(b"\x7f")
    while rest >= 128:
        encoded.append(rest % 128 | 128)
        rest //= 128
    return bytes(encoded) + bytes([rest]) + text


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    """Reads a frame of HTTP/2; returns its type, flags, stream and payload."""
    head = await reader.readexactly(9)
    payload = await reader.readexactly(int.from_bytes(head[:3]))
    return head[3], head[4], int.from_bytes(head[5:9]) & 0x7FFFFFFF, payload


def grpc_message(message: bytes, flags: int = 0) -> bytes:
    """Frames a message as gRPC does."""
    return struct.pack(">BI", flags, len(message)) + message
