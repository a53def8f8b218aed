"""One client in the process of the front: a transport without a socket, which delivers bytes and takes answers."""

import asyncio
from random import Random
from typing import Any

from serving.transport.http2_front.connection import Connection
from serving.transport.http2_front.front import Http2Front
from tests.fuzz.http2.mutations import pieces

_LATER_SECONDS = (0, 0, 5, 11, 40, 4000)  # until a sweep; each is beyond another limit of time


class FakeTransport(asyncio.Transport):
    """A transport whose client takes answers when `take` is called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Connection):
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._high = 1 << 16
        self._waiting = 0  # bytes that the client has not taken
        self._full = False
        self.reading = True
        self.closing = False
        self.lost = False
        self.received = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or self._high

    def get_write_buffer_size(self) -> int:
        return self._waiting

    def write(self, data: Any) -> None:
        assert isinstance(data, bytes)
        if self.closing:
            return
        self._waiting += len(data)
        self.received += len(data)
        if self._waiting > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def take(self, size: int) -> None:
        """Takes bytes of answers, as the client does."""
        self._waiting = max(self._waiting - size, 0)
        if self._full and self._waiting <= self._high // 4:
            self._full = False
            self._protocol.resume_writing()
        if self.closing and not self._waiting:
            self._end(None)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = not self.closing

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing, self.reading = True, False
        if not self._waiting:
            self._end(None)

    def abort(self) -> None:
        self.closing, self.reading, self._waiting = True, False, 0
        self._end(None)

    def break_off(self) -> None:
        """Ends the connection from the client's side."""
        self.closing, self.reading = True, False
        self._end(ConnectionResetError())

    def _end(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self._protocol.connection_lost, error)


def connect(front: Http2Front, network: str) -> tuple[Connection, FakeTransport]:
    """Connects a client, as the front does with an accepted socket."""
    connection = Connection(front, network, f"ipv4:{network}:1", front.loop.time())
    front._peers[network] += 1
    front._metrics.open_connections.inc()
    transport = FakeTransport(front.loop, connection)
    connection.connection_made(transport)
    return connection, transport


async def talk(front: Http2Front, random: Random, data: bytes, network: str) -> int:
    """Sends `data` on a connection of its own, and leaves. Returns the bytes that the server sent."""
    connection, transport = connect(front, network)
    greedy = random.random() < 0.8  # takes its answers at once
    for piece in pieces(random, data, len(front.buffer)):
        while not transport.reading and not transport.closing:
            if not greedy and random.random() < 0.3:
                break
            transport.take(1 << 20)
            await asyncio.sleep(0)
        if not transport.reading:
            break
        connection.get_buffer(-1)[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        if random.random() < 0.3:
            await asyncio.sleep(0)
        if greedy:
            transport.take(1 << 20)
        if random.random() < 0.01:
            connection.sweep(front.loop.time() + random.choice(_LATER_SECONDS))
        if random.random() < 0.005:
            connection.leave(final=random.random() < 0.5)
    if random.random() < 0.8:
        for _ in range(random.choice((1, 3, 10))):
            await asyncio.sleep(0)
            if greedy:
                transport.take(1 << 20)
    if random.random() < 0.3 and not transport.lost:
        connection.sweep(front.loop.time() + random.choice(_LATER_SECONDS))
    if random.random() < 0.05 and not transport.lost:
        connection.cut_off()
    if not transport.lost:
        transport.break_off()
    return transport.received
