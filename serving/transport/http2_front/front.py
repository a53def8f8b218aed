"""The front on HTTP/2: bounds what all clients together may hold, sweeps, drains."""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from serving.errors import TooBusy
from serving.peers import heaviest, network
from serving.security.tls import TLS
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics
from serving.transport.connect.cors import Cors
from serving.transport.http2_front.connection import Connection
from serving.transport.http2_front.dialects import dialects
from serving.transport.http2_front.limits import NETWORK_RESETS, REACHED, Limits, NetworkBuckets
from serving.transport.http2_front.listener import Listener
from serving.transport.routes import Handler, Routes

log = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 15  # read at once from one client, so that no client holds the event loop for long
_SWEEP_SECONDS = 1.0
_GIVEN_WAY_AT_ONCE = 64  # calls of one connection, until their ends are sent: the search for the next call passes them
_POLL_SECONDS = 0.01  # while waiting for the last calls

# Time between the notice of a shutdown and the last stream that is answered: calls that are on their way arrive meanwhile.
_NOTICE_SECONDS = 0.1

# Time for the last answers to be written.
_WRITING_SECONDS = 0.5


class Http2Front:
    """A gRPC server on libnghttp2 and asyncio.

    Attributes:
        routes: find the handler of each call.
        limits: bounds on what callers may hold.
        cors: which web pages may call.
        dialects: the protocols over HTTP/2, by media type of the request.
        loop: the event loop.
        buffer: what clients send is read into it.
        open_calls: calls on all connections.
    """

    def __init__(self, settings: Settings, routes: Routes, tls: TLS | None, metrics: Metrics, *, shares_port: bool):
        """Listens nowhere yet.

        Args:
            settings: limits, keepalive and connection age.
            routes: find the handler of each call.
            tls: certificates; None accepts connections that are not encrypted.
            metrics: count connections and the limits that were reached.
            shares_port: other workers listen on the same port.
        """
        self.routes = routes
        self.limits = Limits.of(settings)
        self.cors = Cors(settings.allowed_origins)
        self.dialects = dialects(routes, self.cors)
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        self.open_calls = 0
        self._tls = tls
        self._metrics = metrics
        for limit in REACHED:
            metrics.limits_reached.labels(limit)  # exported from 0: Prometheus sees no increase in a series that starts at 1
        self._listener = Listener(self.loop, self._admit, shares_port=shares_port)
        self._stopping = False
        self._connections: set[Connection] = set()
        self._peers: Counter[str] = Counter()  # connections, and handshakes, by network
        self._resets = NetworkBuckets(NETWORK_RESETS * self.limits.resets_per_second)
        # A client may open all its connections at once. A handshake takes the event loop longer than most calls.
        self._handshakes = NetworkBuckets(self.limits.connections_per_peer)
        self._request_bytes = self._answer_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, host: str, port: int) -> int:
        """Binds the port on every address of the host, and returns its number, also when the system chose it.

        Raises:
            PortTaken: the port is taken or not allowed. The front must not be used afterwards.
        """
        return self._listener.bind(host, port)

    async def start(self) -> None:
        """Answers calls."""
        self._listener.start()
        self._in_background(self._sweep())

    async def stop(self, seconds: float, finish: Callable[[], Awaitable[None]]) -> None:
        """Sends clients away, lets `finish` answer the calls in flight, and cuts off the rest after `seconds`."""
        end = time.monotonic() + seconds
        self._stopping = True
        self._listener.stop()  # who is connected already gets GOAWAY instead of a reset
        self._leave(final=False)
        await asyncio.sleep(min(_NOTICE_SECONDS, seconds))
        self._leave(final=True)
        await self._calls_end(end - seconds / 2)
        await finish()
        await self._calls_end(min(end, time.monotonic() + _WRITING_SECONDS))
        for connection in [*self._connections]:
            connection.cut_off()
        await self._wait_until(lambda: not self._connections, time.monotonic() + _WRITING_SECONDS)
        for connection in [*self._connections]:
            connection.close()
        for task in self._tasks:
            task.cancel()

    # What connections call.

    def count_limit(self, limit: str) -> None:
        """Counts that a client has reached a limit."""
        self._metrics.limits_reached.labels(limit).inc()

    def make_room_for_call(self, connection: Connection) -> None:
        """Makes room for one more call of `connection`, at the cost of the client with the most calls.

        Raises:
            TooBusy: there is no room.
        """
        if self.open_calls < self.limits.calls:
            return
        self.count_limit("calls")
        error = TooBusy(f"{self.open_calls} calls are open, which is the limit")
        largest = self._largest(lambda one: len(one.exchanges) - len(one.given_way))
        expendable = largest.expendable()
        if expendable is None or largest is connection:
            raise error
        expendable.give_way(error)
        largest.given_way.add(expendable)
        if len(largest.given_way) == _GIVEN_WAY_AT_ONCE:
            largest.flush()

    def take_reset(self, network: str, now: float) -> bool:
        """Counts a call that a client has cancelled; returns False for one too many of its network."""
        return self._resets.take(network, now)

    def hold_request(self, size: int) -> None:
        """Counts `size` more bytes of requests. Above the limit, the largest request of the client with the most fails."""
        self._request_bytes += size
        if size > 0 and self._request_bytes > self.limits.request_bytes:
            self.count_limit("request_bytes")
            largest = self._largest(lambda one: one.held)
            exchange = max(largest.exchanges.values(), key=lambda one: one.held)
            exchange.refuse(TooBusy(f"requests of over {self.limits.request_bytes} bytes are arriving, which is the limit"))

    def hold_answers(self, size: int) -> None:
        """Counts `size` more bytes of answers. Above the limit, the connection of the client with the most closes."""
        self._answer_bytes += size
        if size > 0 and self._answer_bytes > self.limits.answer_bytes:
            self.count_limit("answer_bytes")
            self._largest(lambda one: one.untaken).close()

    def _admit(self, accepted: socket.socket, endpoint: Any) -> None:
        """Begins a connection, or refuses it before any TLS handshake if there is no room."""
        client = network(endpoint[0])
        now = self.loop.time()
        if self._tls and not self._handshakes.take(client, now):
            self.count_limit("handshakes_per_second")
            accepted.close()
            return
        if not self._make_room_for_connection(client):
            accepted.close()
            return
        connection = Connection(self, client, _peer(endpoint), now)
        self._peers[client] += 1
        self._metrics.open_connections.inc()
        self._in_background(self._connect(connection, accepted))

    def _make_room_for_connection(self, client: str) -> bool:
        """Makes room for one more connection of a network, at the cost of one without calls; returns False if there is none.

        The connection that gives way is the longest silent one, of the network that has most connections.
        """
        own = self._peers[client]
        if own >= self.limits.connections_per_peer:
            self.count_limit("connections_per_peer")
            expendable = {client}
        elif self._peers.total() >= self.limits.connections:
            self.count_limit("connections")
            expendable = {client} | {name for name, connections in self._peers.items() if connections > own}
        else:
            return True
        idle = [connection for connection in self._connections if connection.idle and connection.network in expendable]
        if not idle:
            return False
        max(idle, key=lambda one: (self._peers[one.network], -one.heard)).dismiss()
        return True

    async def _connect(self, connection: Connection, accepted: socket.socket) -> None:
        """Hands a socket to its connection, after the TLS handshake where there is one."""
        encrypted: dict[str, Any] = {}
        if self._tls:
            seconds = self.limits.preface_seconds
            encrypted = {"ssl": self._tls.context(), "ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": seconds}
        try:
            await self.loop.connect_accepted_socket(lambda: connection, accepted, **encrypted)
        except (OSError, asyncio.CancelledError):  # ssl.SSLError and TimeoutError are OSErrors
            self.count_limit("handshake")
            accepted.close()
            self._release(connection)

    def message_limit(self, handler: Handler) -> int:
        """Returns the size of the largest request message of a handler."""
        return handler.max_bytes or self.limits.message_bytes

    def _largest(self, size: Callable[[Connection], int]) -> Connection:
        """Returns the connection of the largest `size`, of the network whose connections have the largest sum of it."""
        return heaviest(self._connections, size, lambda one: one.network)

    def remember(self, connection: Connection) -> None:
        """Takes in a connection that is ready for its client."""
        self._connections.add(connection)
        if self._stopping:  # accepted at the last moment
            connection.leave(final=True)

    def forget(self, connection: Connection) -> None:
        """Takes a connection that has ended out of the counts."""
        self.open_calls -= len(connection.exchanges)
        self._answer_bytes -= connection.untaken
        self._connections.discard(connection)
        self._release(connection)

    def _release(self, connection: Connection) -> None:
        self._peers[connection.network] -= 1
        if not self._peers[connection.network]:
            del self._peers[connection.network]
        self._metrics.open_connections.dec()

    async def _sweep(self) -> None:
        """Ends what takes too long, on all connections."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for connection in [*self._connections]:
                try:
                    connection.sweep(self.loop.time())
                except Exception:  # it must not end the time limits of the other connections
                    log_event(log, logging.ERROR, "sweep_failed", "a connection failed; closing it", exc_info=True)
                    connection.close()
                await asyncio.sleep(0)  # many calls of one connection may end at once
            self._resets.sweep(self.loop.time())
            self._handshakes.sweep(self.loop.time())

    def _leave(self, *, final: bool) -> None:
        for connection in [*self._connections]:
            connection.leave(final=final)

    async def _calls_end(self, end: float) -> None:
        """Waits until no call is open but those that last until their callers cancel them."""
        await self._wait_until(lambda: not any(connection.busy for connection in self._connections), end)

    @staticmethod
    async def _wait_until(condition: Callable[[], bool], end: float) -> None:
        # Polled: an event would cost every call of a server's life, for its last moment.
        while time.monotonic() < end and not condition():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _peer(endpoint: Any) -> str:
    """Returns a client's address as gRPC writes it."""
    host, port, *_ = endpoint
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
