"""One client's HTTP/2 connection: its bytes become calls, and the answers become bytes."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from serving.errors import RequestError
from serving.transport.http2_front import engine as http2
from serving.transport.http2_front.exchange import Exchange
from serving.transport.http2_front.head import Head
from serving.transport.http2_front.lifetime import Action, Lifetime
from serving.transport.http2_front.limits import CONNECTION_ANSWER_BYTES, TokenBucket
from serving.transport.http2_front.opening import answer_to_no_call, open_exchange
from serving.transport.http2_front.streaming_exchange import StreamingExchange

if TYPE_CHECKING:
    from serving.transport.http2_front.front import Http2Front

_CHUNK = 1 << 16  # bytes handed to the socket at once

# The answer to a client that speaks HTTP/1: curl does without TLS, unless it is told otherwise.
_HTTP_1 = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"This port speaks HTTP/2. With curl, add --http2-prior-knowledge.\n"
)
_FIRST_LINE_BYTES = 4096  # searched for a sign of HTTP/1

# The first byte of a client that expects TLS, which takes any answer in plain text for a server without TLS.
_TLS_HANDSHAKE = 22


class Connection(asyncio.BufferedProtocol):
    """One client.

    Attributes:
        front: what the connections of this process share.
        network: the client's network, for limits by peer.
        engine: reads and writes HTTP/2.
        exchanges: the open calls, by stream.
        blocked: streams whose handlers wait until the client takes their answers.
        given_way: calls that have made room for others, until their ends are sent.
        heard: when the client last sent anything, on the clock of the event loop.
        held: bytes of requests that no handler has taken.
        untaken: bytes of answers that wait for the client.
    """

    def __init__(self, front: "Http2Front", network: str, peer: str, began: float):
        """Waits for a transport.

        Args:
            front: what the connections of this process share.
            network: the client's network.
            peer: the client's address, as gRPC writes it.
            began: when the connection was accepted, on the clock of the event loop.
        """
        self.front = front
        self.network = network
        self.engine = http2.Engine(front.limits)
        self.exchanges: dict[int, Exchange] = {}
        self.blocked: set[StreamingExchange] = set()
        self.given_way: set[Exchange] = set()
        self.heard = began
        self.held = 0
        self.untaken = 0
        self._peer = peer
        self._transport: asyncio.Transport
        self._lifetime = Lifetime(front.limits, began)
        self._settled = False  # True once the client's first frame has arrived
        self._paused = False  # True while the socket's buffer is full
        self._lost = False
        self._leaving = False  # True once no new call is answered
        self._finished = False  # True once the connection ends as soon as its last bytes are sent
        self._flush_due: asyncio.Handle | None = None
        self._at_last_event = False  # True while the last event of a read is handled, until a flush
        self._unneeded: list[int] = []  # streams that are answered while their callers still send
        self._last_stream = 0
        self._head = Head(())  # of the last call
        self._resets = TokenBucket(front.limits.resets_per_second, began)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the client to speak: the server's first frames would spoil an answer to a client of HTTP/1."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_CHUNK)
        self.front.remember(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the work for a client that has gone."""
        self._lost = True
        for exchange in self.exchanges.values():
            exchange.cancel()
        self.front.forget(self)
        self.exchanges.clear()
        self.blocked.clear()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Returns the buffer of all connections: the engine copies what it keeps before the next connection reads."""
        return self.front.buffer

    def buffer_updated(self, size: int) -> None:
        """Takes `size` bytes from the buffer."""
        data = self.front.buffer[:size]
        self.heard = self.front.loop.time()
        try:
            events = self.engine.receive(data)
        except http2.Http2Error:
            if not self._settled and (data[0] == _TLS_HANDSHAKE or b" HTTP/1." in bytes(data[:_FIRST_LINE_BYTES])):
                self._transport.write(_HTTP_1)
            self.front.count_limit("http2")
            self._transport.close()
            return
        self._handle(events[:-1])
        self._at_last_event = True
        self._handle(events[-1:])
        if self._at_last_event:
            self._at_last_event = False
            self.flush_soon()

    def pause_writing(self) -> None:
        """Stops reading: a client that takes no answers is asked no more questions."""
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Goes on once the client has taken its answers."""
        self._paused = False
        self._transport.resume_reading()
        self.flush()

    # What exchanges call.

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Lets the client send `size` more bytes on a stream."""
        if size and not self._lost:
            try:
                self.engine.acknowledge(stream_id, size)
            except http2.Http2Error:  # the stream has ended meanwhile
                return
            self.flush_soon()

    def hold(self, exchange: Exchange, size: int) -> None:
        """Counts `size` more bytes of requests; negative once a handler has taken them."""
        if size:
            exchange.held += size
            self.held += size
            self.front.hold_request(size)

    def answered(self, exchange: Exchange, *, with_success: bool = False) -> None:
        """Sends what the exchange has queued, and stops a caller that still sends its request.

        The answer to a lone image is made while its request is read: it goes out at once, before the call is counted. Not
        before the last event, because sending may end streams whose beginning is not handled yet.
        """
        self._stop_sending(exchange.stream_id, ended=exchange.request_ended)
        if self._at_last_event and with_success:
            self.flush()
        else:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Sends what is queued, together with all that is queued in this turn of the event loop."""
        if self._flush_due is None:
            self._flush_due = self.front.loop.call_soon(self.flush)

    def peer(self) -> str:
        """Returns the client's address, as gRPC writes it."""
        return self._peer

    # What the front calls.

    def flush(self) -> None:
        """Sends what is queued, as far as the client takes it."""
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        self._at_last_event = False
        if self._lost:
            return
        try:
            self._send()
            if self._unneeded:
                self._reset_unneeded()
            self._handle(self.engine.events())
            self._finished |= self.engine.finished
            if self.given_way:
                self.given_way.clear()
        except http2.Http2Error:
            self._transport.close()
            return
        if self.blocked:
            self.blocked = {exchange for exchange in self.blocked if not exchange.resume()}
        untaken = self.engine.queued() + self._transport.get_write_buffer_size()
        if untaken != self.untaken:
            grown, self.untaken = untaken - self.untaken, untaken
            self.front.hold_answers(grown)
        if self._finished or (self._leaving and not self.exchanges):
            self._transport.close()

    def leave(self, *, final: bool) -> None:
        """Asks the client to make new calls elsewhere; `final` answers no call that comes from now on."""
        if self._lost:
            return
        with contextlib.suppress(http2.Http2Error):
            if final:
                self._leaving = True
                self.engine.shut_down(self._last_stream)
            else:
                self.engine.announce_shutdown()
        self.flush()

    def expendable(self) -> Exchange | None:
        """Returns the call that is least worth keeping; None if all are being answered."""
        for exchange in self.exchanges.values():  # not ranked with the others: a flood begins thousands of such calls
            if exchange.waits_since is not None:
                return exchange

        def rank(exchange: Exchange) -> int:
            if exchange.done:  # with an answer that is about to be sent, or that its client does not take
                return 2 if self._flush_due is None and self.engine.queued(exchange.stream_id) else 0
            return 1 if exchange.endless else 0

        worst = max(self.exchanges.values(), key=rank, default=None)
        return worst if worst is not None and rank(worst) else None

    @property
    def idle(self) -> bool:
        """True while no call is open, and the connection is not about to end."""
        return not (self.exchanges or self._leaving or self._finished or self._lost)

    @property
    def busy(self) -> bool:
        """True while a call is open that will end by itself."""
        return any(not exchange.endless for exchange in self.exchanges.values())

    def dismiss(self) -> None:
        """Asks the client to make new calls elsewhere, and closes at once: there must be no call."""
        self.leave(final=True)
        self.close()

    def cut_off(self) -> None:
        """Ends the calls that are still open, and the connection."""
        for exchange in self.exchanges.values():
            exchange.cut_off()
        self._finished = True
        self.flush()

    def close(self) -> None:
        """Closes at once, whatever is unsent."""
        if not self._lost:
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Ends what has taken too long; the front calls this about once a second."""
        for exchange in [*self.exchanges.values()]:
            exchange.sweep(now)
        buffered = self._transport.get_write_buffer_size()
        due = self._lifetime.check(
            now,
            heard=self.heard,
            settled=self._settled,
            calls=len(self.exchanges),
            delivered=self.engine.delivered - buffered,
            untaken=self.engine.queued() + buffered,
        )
        if due is None:
            return
        if due.limit:
            self.front.count_limit(due.limit)
        match due.action:
            case Action.CLOSE:
                self.close()
            case Action.PING:
                with contextlib.suppress(http2.Http2Error):  # the connection is ending
                    self.engine.ping()
                self.flush()
            case Action.ANNOUNCE | Action.LEAVE:
                self.leave(final=due.action is Action.LEAVE)

    def _send(self) -> None:
        while not self._paused and (out := self.engine.to_send(_CHUNK)):
            self._transport.write(out)

    def _reset_unneeded(self) -> None:
        """Stops the callers that still send requests which are answered, once they have their answers."""
        waiting = []
        for stream_id in self._unneeded:
            if self._paused or self.engine.queued(stream_id):
                waiting.append(stream_id)
                continue
            with contextlib.suppress(http2.Http2Error):  # the stream has ended meanwhile
                self.engine.reset(stream_id, http2.NO_ERROR)
        self._unneeded = waiting
        self._send()

    def _handle(self, events: list[Any]) -> None:
        for event in events:
            handle = _HANDLERS.get(type(event))
            if handle:
                handle(self, event)

    def _on_request(self, event: http2.RequestReceived) -> None:
        if self._finished:
            return
        self._last_stream = event.stream_id
        with contextlib.suppress(http2.Http2Error):  # the client has reset the stream with its next bytes
            self._begin(event)

    def _begin(self, event: http2.RequestReceived) -> None:
        stream_id, head = event.stream_id, self._head
        if event.headers != head.headers:  # most calls of a client have the headers of its last call
            head = Head(event.headers)
            if head.size <= self.front.limits.header_bytes:
                self._head = head
        if self.untaken > CONNECTION_ANSWER_BYTES:
            self.front.count_limit("untaken_answers")
            self.engine.reset(stream_id, http2.ENHANCE_YOUR_CALM)
            return
        dialect = self.front.dialects.get(head.content_type)
        if dialect is None or head.method != b"POST":
            self.engine.respond(stream_id, answer_to_no_call(self.front, head), ends=True)
            self._stop_sending(stream_id, ended=event.end_stream)
            return
        try:
            exchange = open_exchange(self, stream_id, head, dialect)
        except RequestError as error:
            self.front.routes.refuse(head.path, error, self.peer)
            dialect.fail(self.engine, stream_id, head, error)
            self._stop_sending(stream_id, ended=event.end_stream)
            return
        self.exchanges[stream_id] = exchange
        self.front.open_calls += 1
        self.hold(exchange, head.size)  # the exchange keeps the headers
        if event.end_stream and not exchange.done:
            exchange.receive(b"", ended=True)

    def _on_data(self, event: http2.DataReceived) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is None or exchange.done:
            self.acknowledge(event.stream_id, len(event.data))
        else:
            exchange.receive(event.data, ended=event.end_stream)

    def _on_request_end(self, event: http2.RequestEnded) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is not None and not exchange.done:
            exchange.receive(b"", ended=True)

    def _on_reset(self, event: http2.StreamReset) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.cancel()
        allowed = self._resets.take(self.heard), self.front.take_reset(self.network, self.heard)
        if not all(allowed) and not self._finished:
            self.front.count_limit("resets")
            with contextlib.suppress(http2.Http2Error):  # the connection is ending already
                self.engine.shut_down(self._last_stream, http2.ENHANCE_YOUR_CALM)
            self._leaving = True
            self._finished = True

    def _on_close(self, event: http2.StreamClosed) -> None:
        exchange = self.exchanges.pop(event.stream_id, None)
        if exchange is not None:
            self.front.open_calls -= 1
            exchange.cancel()

    def _on_goaway(self, event: http2.GoAwayReceived) -> None:
        self._leaving = True

    def _on_end(self, event: http2.ConnectionClosed) -> None:
        if event.error_code and not self._leaving:  # else the code is that of a GOAWAY, the client's or ours
            self.front.count_limit("http2")

    def _on_settings(self, event: http2.SettingsReceived) -> None:
        self._settled = True

    def _stop_sending(self, stream_id: int, *, ended: bool) -> None:
        if not ended:
            self._unneeded.append(stream_id)


_HANDLERS: dict[type, Callable[[Connection, Any], None]] = {
    http2.RequestReceived: Connection._on_request,
    http2.DataReceived: Connection._on_data,
    http2.RequestEnded: Connection._on_request_end,
    http2.StreamReset: Connection._on_reset,
    http2.StreamClosed: Connection._on_close,
    http2.GoAwayReceived: Connection._on_goaway,
    http2.ConnectionClosed: Connection._on_end,
    http2.SettingsReceived: Connection._on_settings,
}
