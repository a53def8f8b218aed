"""Targets of the load test that speak HTTP, and a cheap client for them on persistent HTTP/1.1 connections."""

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
    """A server that takes images by POST, and answers with probabilities.

    Attributes:
        address: host:port.
        path: of the POST request.
        encoding: raw (pixels in order, answered by little-endian float32) or json (nested lists).
    """

    address: str
    path: str
    encoding: Encoding = "raw"

    @property
    def content_type(self) -> str:
        """Content type of `body`."""
        return "application/octet-stream" if self.encoding == "raw" else "application/json"

    def body(self, images: Images) -> bytes:
        """Returns the body of a request."""
        if self.encoding == "raw":
            return images.tobytes()
        return json.dumps({"images": images.tolist()}, separators=(",", ":")).encode()

    def request(self, plan: Plan, images: Images) -> bytes:
        """Returns headers and body, ready to send."""
        body = self.body(images)
        head = (
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.address}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(body)}",
        )
        return "\r\n".join((*head, "", "")).encode() + body

    def callers(self, plan: Plan) -> list[Caller]:
        """Returns a caller for each connection of the plan; each opens one HTTP/1.1 connection per call in flight."""
        return [HttpCaller(self.address, plan.timeout_seconds, _DIGITS[self.encoding]) for _ in range(plan.connections)]


class HttpCaller:
    """A pool of connections to one server; each carries one call at a time."""

    def __init__(self, address: str, timeout: float, digits: Callable[[bytes], Digits]):
        self._host, _, port = address.rpartition(":")
        self._port, self._timeout, self._digits = int(port), timeout, digits
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def call(self, request: bytes) -> Outcome:
        """Sends a request over a free connection or a new one, and waits for the answer."""
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
        except ValueError:  # the answer is not HTTP, or has no probabilities
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
            if connection.free:  # the server may have closed it
                return connection
            self._all.discard(connection)
        _, opened = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        self._all.add(opened)
        return opened

    async def close(self) -> None:
        """Closes all connections, also those with a call in flight."""
        for connection in self._all:
            connection.abort()


class _Connection(asyncio.Protocol):
    """One connection; every answer must have a Content-Length, and these servers send it."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._start = self._end = 0  # of the awaited body in the received bytes; 0 before its header has come
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._kept = True

    @property
    def free(self) -> bool:
        """True when the connection can take a call."""
        return self._kept and (self._answer is None or (self._answer.done() and not self._answer.cancelled()))

    def exchange(self, content: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Sends a request. The future gives status and body of the answer, or OSError when the connection breaks."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(content)
        return self._answer

    def abort(self) -> None:
        """Closes the connection at once."""
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
                self._broken(ValueError("the answer has no Content-Length header"))
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
