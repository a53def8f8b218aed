"""Cases of a suite after RFC 9113: bytes that a client sends on a new connection, and what must come back."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.calls import TIMEOUT
from tests.support.http2_client import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    grpc_message,
    header_block,
    literal,
    read_frame,
)

# Codes of errors. Source: RFC 9113, 7.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT = range(5)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = range(5, 10)

OPENING = PREFACE + frame(SETTINGS, 0, 0)

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REQUEST = grpc_message(b"")
ANSWER = grpc_message(b"\x08\x01")  # the health of the server: SERVING

Frame = tuple[int, int, int, bytes]

_LAST_STREAM = 9999  # of the call that shows that a connection goes on

_FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", CHECK),
    (":authority", "digits"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


@dataclass(frozen=True)
class Fatal:
    """A connection error: GOAWAY with this code, then the end. None: the end alone."""

    code: int | None


@dataclass(frozen=True)
class Reset:
    """A stream error: RST_STREAM with this code. The connection goes on."""

    code: int
    stream: int = 1


@dataclass(frozen=True)
class Answered:
    """The call on this stream is answered."""

    stream: int = 1


@dataclass(frozen=True)
class Ignored:
    """Nothing comes for what was sent. The connection goes on."""


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        section: section of the RFC that the file is about.
        name: what the client does.
        sent: bytes after the client's opening.
        outcome: what must come.
        why: reason for which libnghttp2 differs from the section's wording.
        opening: the client's first bytes.
    """

    section: str
    name: str
    sent: bytes
    outcome: Fatal | Reset | Answered | Ignored
    why: str = ""
    opening: bytes = OPENING

    def __str__(self) -> str:
        return f"{self.section} {self.name}"


@dataclass
class Wire:
    """One raw connection.

    Attributes:
        frames: all frames that came, but those that `quietly` waits for.
        ended: True once the server has closed the connection.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    frames: list[Frame] = field(default_factory=list)
    ended: bool = False
    _pings: int = 0

    def send(self, data: bytes) -> None:
        """Sends bytes."""
        self.writer.write(data)

    async def until(self, came: Callable[[], bool]) -> None:
        """Reads frames until `came`, or until the server closes. Raises TimeoutError."""
        async with asyncio.timeout(TIMEOUT):
            while not came() and not self.ended:
                try:
                    self.frames.append(await read_frame(self.reader))
                except (asyncio.IncompleteReadError, ConnectionResetError):
                    self.ended = True

    async def settle(self) -> None:
        """Reads until the server has sent all that it can send now: two answers to PING, one after the other."""
        for _ in range(2):
            self._pings += 1
            payload = self._pings.to_bytes(8)
            self.send(frame(PING, 0, 0, payload))
            await self.until(lambda payload=payload: (PING, ACK, 0, payload) in self.frames)  # type: ignore[misc]

    def data(self, stream: int = 1) -> bytes:
        """Returns the data that came on a stream."""
        return b"".join(payload for kind, _, number, payload in self.frames if (kind, number) == (DATA, stream))

    def has_ended(self, stream: int = 1) -> bool:
        """Returns True once the answer on a stream is complete."""
        return any(
            number == stream and kind in (DATA, HEADERS) and flags & END_STREAM for kind, flags, number, _ in self.frames
        )

    def errors(self) -> list[tuple[int, int, int]]:
        """Returns the type, the stream and the code of each RST_STREAM and GOAWAY that came."""
        codes = {RST_STREAM: slice(0, 4), GOAWAY: slice(4, 8)}
        return [(kind, stream, int.from_bytes(part[codes[kind]])) for kind, _, stream, part in self.frames if kind in codes]

    async def assert_answers(self, stream: int = _LAST_STREAM) -> None:
        """Checks that the connection goes on: a call is answered."""
        self.send(call(stream))
        await self.until(lambda: self.has_ended(stream))
        assert self.data(stream) == ANSWER, self.frames


@asynccontextmanager
async def wire(port: int, opening: bytes = OPENING) -> AsyncIterator[Wire]:
    """Connects, and sends the client's opening."""
    connection = Wire(*await asyncio.open_connection("127.0.0.1", port))
    connection.send(opening)
    try:
        yield connection
    finally:
        connection.writer.close()
        with contextlib.suppress(OSError):
            await connection.writer.wait_closed()


async def check(port: int, case: Case) -> None:
    """Plays a case, and checks that the server goes on."""
    async with wire(port, case.opening) as connection:
        connection.send(case.sent)
        match case.outcome:
            case Fatal(code):
                await connection.until(lambda: False)
                assert connection.errors() == ([] if code is None else [(GOAWAY, 0, code)])
            case Reset(code, stream):
                await connection.until(lambda: bool(connection.errors()))
                assert connection.errors() == [(RST_STREAM, stream, code)]
                await connection.assert_answers()
            case Answered(stream):
                await connection.until(lambda: connection.has_ended(stream))
                assert connection.data(stream) == ANSWER, connection.frames
                await connection.assert_answers()
                assert connection.errors() == []
            case Ignored():
                await connection.settle()
                await connection.assert_answers()
                assert connection.errors() == []
    async with wire(port) as another:
        await another.assert_answers()


def fields(*more: tuple[str, str], without: str = "", **changed: str) -> bytes:
    """Encodes the headers of a call, with some left out, changed, or added. Names of changed ones have no colon."""
    chosen = [(name, changed.pop(name.strip(":"), text)) for name, text in _FIELDS if name != without]
    assert not changed
    return b"".join(literal(name.encode(), text.encode()) for name, text in [*chosen, *more])


def headers(stream: int, block: bytes | None = None, flags: int = END_HEADERS) -> bytes:
    """Begins a call."""
    return frame(HEADERS, flags, stream, header_block() if block is None else block)


def end(stream: int, body: bytes = REQUEST) -> bytes:
    """Ends a call with its message."""
    return frame(DATA, END_STREAM, stream, body)


def call(stream: int, block: bytes | None = None) -> bytes:
    """Makes a whole call."""
    return headers(stream, block) + end(stream)


def settings(*pairs: tuple[int, int]) -> bytes:
    """Encodes a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, number) for key, number in pairs))


def number(size: int) -> bytes:
    """Encodes 32 bits: an increment, an error code, a stream."""
    return struct.pack(">I", size)
