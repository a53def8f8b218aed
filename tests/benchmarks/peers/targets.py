"""The servers that are called over HTTP, and a client for them that costs little: connections of HTTP/1.1 that are kept."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.loadtest.plan import Plan
from serving.loadtest.target import Caller, Digits, Images, Outcome

Encoding = Literal["raw", "json"]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


def _raw_digits(body: bytes) -> Digits:
    return tuple(np.frombuffer(body, "<f4").reshape(-1, 10).argmax(axis=1).tolist())


def _json_digits(body: bytes) -> Digits:
    return tuple(np.array(json.loads(body)).argmax(axis=1).tolist())


_DIGITS: dict[Encoding, Callable[[bytes], Digits]] = {"raw": _raw_digits, "json": _json_digits}


@dataclass(frozen=True)
class HttpTarget:
    """A server that is sent images by POST, and answers their probabilities.

    Attributes:
        address: host:port.
        path: where it takes them.
        encoding: raw, the images' pixels one after the other, and little-endian float32; or json, nested lists.
    """

    address: str
    path: str
    encoding: Encoding = "raw"

    @property
    def content_type(self) -> str:
        """Of what `body` makes."""
        return "application/octet-stream" if self.encoding == "raw" else "application/json"

    def body(self, images: Images) -> bytes:
        """What is posted."""
        if self.encoding == "raw":
            return images.tobytes()
        return json.dumps({"images": images.tolist()}, separators=(",", ":")).encode()

    def request(self, plan: Plan, images: Images) -> bytes:
        """All that goes over the connection, headers and body."""
        body = self.body(images)
        head = (
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.address}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(body)}",
        )
        return "\r\n".join((*head, "", "")).encode() + body

    def callers(self, plan: Plan) -> list[Caller]:
        """As many as the plan has connections; each opens as many as it has calls on their way, as HTTP/1.1 must."""
        return [HttpCaller(self.address, plan.timeout_seconds, _DIGITS[self.encoding]) for _ in range(plan.connections)]


class HttpCaller:
    """Connections to a server, each with one call at a time."""

    def __init__(self, address: str, timeout: float, digits: Callable[[bytes], Digits]):
        self._host, _, port = address.rpartition(":")
        self._port, self._timeout, self._digits = int(port), timeout, digits
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def call(self, request: bytes) -> Outcome:
        """Sends it over a connection that is free, or a new one, and waits for its answer."""
        connection = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._connection()
                status, body = await connection.exchange(request)
            outcome = Outcome("OK", self._digits(body)) if status == 200 else Outcome(f"HTTP_{status}")
        except TimeoutError:
            outcome = Outcome("DEADLINE_EXCEEDED")
        except OSError:
            outcome = Outcome("UNAVAILABLE")
        except ValueError:  # what came is no answer of HTTP, or none with probabilities
            outcome = Outcome("DATA_LOSS")
        if connection is not None:
            if connection.free:
                self._idle.append(connection)
            else:
                self._all.discard(connection)
                connection.abort()
        return outcome

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.free:  # the server has not closed it meanwhile
                return connection
            self._all.discard(connection)
        _, opened = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        self._all.add(opened)
        return opened

    async def close(self) -> None:
        """Closes all connections, whatever is on its way."""
        for connection in self._all:
            connection.abort()


class _Connection(asyncio.Protocol):
    """One connection: an answer has a Content-Length, as those of all these servers have."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._start = self._end = 0  # of the body that is waited for; 0 while its length is not known
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._kept = True

    @property
    def free(self) -> bool:
        """Whether it can take a call."""
        return self._kept and (self._answer is None or (self._answer.done() and not self._answer.cancelled()))

    def exchange(self, content: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Sends a request; the status and the body of its answer. OSError if the connection breaks."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(content)
        return self._answer

    def abort(self) -> None:
        """Closes it at once."""
        self._kept = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._end:
            head = self._received.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _LENGTH.search(self._received, 0, head)
            if length is None:
                self._broken(ValueError("an answer without its length"))
                return
            self._start, self._end = head + 4, head + 4 + int(length[1])
        if len(self._received) >= self._end and self._answer is not None and not self._answer.done():
            self._kept = self._kept and not _CLOSE.search(self._received, 0, self._start)
            self._answer.set_result((int(self._received[9:12]), bytes(self._received[self._start : self._end])))
            self._start = self._end = 0
            self._received.clear()

    def connection_lost(self, error: Exception | None) -> None:
        self._broken(error or ConnectionResetError("the server has closed the connection"))

    def _broken(self, error: Exception) -> None:
        self._kept = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
