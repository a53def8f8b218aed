"""Bidirectional streams: many requests at once, with backpressure when a client stops reading its answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from serving.api.dispatch import Dispatcher
from serving.api.rpc import Method
from serving.api.side_thread import ThreadBusy
from serving.call import Call
from serving.errors import RequestError, Stopping, TooBusy
from serving.peers import heaviest
from serving.telemetry.metrics import Metrics
from serving.transport.shares import Place, Places

# Bytes of requests of one stream whose answers its caller has not taken. Beyond it, the stream is read no further.
_STREAM_BYTES = 4 << 20


class Streams:
    """The open streams of a server. Each request of a stream is answered and counted like a call of its own."""

    def __init__(self, dispatcher: Dispatcher, metrics: Metrics, *, max_streams: int, max_in_flight: int, max_bytes: int):
        """Starts without streams.

        Args:
            dispatcher: answers the requests.
            metrics: counts open streams.
            max_streams: streams that may be open at once. Beyond it, the caller with most of them gives way.
            max_in_flight: requests of one stream in progress at once.
            max_bytes: bytes of requests of all streams whose answers are not taken. Beyond it, the stream ends that has
                most of them, of the caller with most.
        """
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._max_bytes = max_bytes
        self._held = 0
        self._places = Places(max_streams, f"{max_streams} streams are open, which is the limit")
        self._open: set[Stream] = set()

    async def run(
        self,
        method: Method[Any, Any],
        requests: AsyncIterator[bytes],
        write: Callable[[bytes], Awaitable[None]],
        call: Call,
    ) -> None:
        """Answers the requests of one stream until its caller half-closes or the server stops.

        Args:
            method: the method that is called.
            requests: encoded requests.
            write: sends an encoded answer; returns when there is room for the next.
            call: the stream's own, whose deadline, client and span its requests share.

        Raises:
            RequestError: the stream is refused, or ends with an error. Both are counted.
        """
        await self._dispatcher.traced(method, call, self._run(method, requests, write, call))

    def stop(self) -> None:
        """Ends every stream with UNAVAILABLE, once the requests it has read are answered."""
        for stream in self._open:
            stream.stop()

    async def _run(
        self,
        method: Method[Any, Any],
        requests: AsyncIterator[bytes],
        write: Callable[[bytes], Awaitable[None]],
        call: Call,
    ) -> None:
        stream = Stream(write, self._max_in_flight, lambda size: self._hold(place, size), ordered=method.ordered)

        def begin(encoded: bytes) -> asyncio.Future[bytes]:
            return self._dispatcher.begin(method, encoded, Call(call.deadline, call.client, call.span, call.peer))

        try:
            with self._places.take(call.source, lambda: stream.idle) as place:
                self._open.add(stream)
                self._metrics.open_streams.inc()
                try:
                    await stream.run(requests, begin)
                finally:
                    self._open.discard(stream)
                    self._metrics.open_streams.dec()
        except ThreadBusy:  # counted with its request
            raise
        except TooBusy as error:
            raise self._counted(method, error) from None
        if stream.stopped:
            raise self._counted(method, Stopping("the server is stopping"))

    def _hold(self, place: Place, size: int) -> None:
        """Counts `size` more bytes of requests of a stream."""
        place.held += size
        self._held += size
        if size <= 0 or self._held <= self._max_bytes:
            return
        lasting = [one for one in self._places if not one.lost]  # the others have not given their bytes back yet
        if sum(one.held for one in lasting) > self._max_bytes:
            largest = heaviest(lasting, lambda one: one.held, lambda one: one.source.client, lambda one: one.source)
            largest.lose(TooBusy(f"requests of over {self._max_bytes} bytes of streams are unanswered, which is the limit"))

    def _counted(self, method: Method[Any, Any], error: RequestError) -> RequestError:
        self._dispatcher.count_refusal(method.name, error)
        return error


class Stream:
    """One open stream. Backpressure: with `max_in_flight` requests in progress or unread answers, it reads no further.

    An answer is about as large as its request at most, so the bytes of requests bound both.

    Attributes:
        stopped: True once `stop` has ended the stream.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        max_in_flight: int,
        hold: Callable[[int], None],
        *,
        ordered: bool,
    ):
        """Sends answers by `write`, in the order of the requests if `ordered`; tells `hold` how many bytes it keeps."""
        self._write = write
        self._count = hold
        self._held = 0
        self._room = asyncio.Event()  # set when an answer is taken
        self._ordered = ordered
        self._slots = asyncio.Semaphore(max_in_flight)
        self._answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()  # None wakes `run` up
        self._in_progress: dict[asyncio.Future[bytes], int] = {}  # with the bytes of their requests
        self._reading = True
        self.stopped = False

    async def run(self, requests: AsyncIterator[bytes], begin: Callable[[bytes], asyncio.Future[bytes]]) -> None:
        """Runs until the caller half-closes or `stop` is called, and all requests read so far are answered.

        Args:
            requests: encoded requests.
            begin: has one request answered.

        Raises:
            RequestError: an answer that `begin` returned ends with it.
        """
        reader = asyncio.create_task(self._read(requests, begin))
        try:
            while self._reading or self._in_progress or not self._answers.empty():
                answer = await self._answers.get()
                if answer is None:
                    continue
                await self._write(await answer)
                self._hold(-self._in_progress.pop(answer))
                self._room.set()
                self._slots.release()
            if not self.stopped:
                await reader
        finally:
            unfinished: list[asyncio.Future[Any]] = [reader, *self._in_progress]
            for future in unfinished:
                future.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
            self._hold(-self._held)
            self._in_progress.clear()
            self._answers = asyncio.Queue()  # an answer of this stream may refer to it until the garbage collector runs

    @property
    def idle(self) -> bool:
        """True while no request is in progress and no answer is unread."""
        return not self._in_progress

    def stop(self) -> None:
        """Reads no further, and ends the stream once the requests read so far are answered."""
        self.stopped, self._reading = True, False
        self._answers.put_nowait(None)

    async def _read(self, requests: AsyncIterator[bytes], begin: Callable[[bytes], asyncio.Future[bytes]]) -> None:
        try:
            async for encoded in requests:
                await self._slots.acquire()
                self._hold(len(encoded))
                while self._in_progress and self._held > _STREAM_BYTES:
                    self._room.clear()
                    await self._room.wait()
                if not self._reading:
                    return
                answer = begin(encoded)
                self._in_progress[answer] = len(encoded)
                if self._ordered:
                    self._answers.put_nowait(answer)
                else:
                    answer.add_done_callback(self._answers.put_nowait)
        finally:
            self._reading = False
            self._answers.put_nowait(None)

    def _hold(self, size: int) -> None:
        self._held += size
        self._count(size)
