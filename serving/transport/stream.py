"""Bidirectional streams: many requests at once, with backpressure when a client stops reading its answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from serving.api.dispatch import Dispatcher
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import RequestError, Stopping, TooBusy
from serving.telemetry.metrics import Metrics
from serving.transport.shares import Places


class Streams:
    """The open streams of a server. Each request of a stream is answered and counted like a call of its own."""

    def __init__(self, dispatcher: Dispatcher, metrics: Metrics, *, max_streams: int, max_in_flight: int):
        """Starts without streams.

        Args:
            dispatcher: answers the requests.
            metrics: counts open streams.
            max_streams: streams that may be open at once. Beyond it, the caller with most of them gives way.
            max_in_flight: requests of one stream in progress at once.
        """
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._max_in_flight = max_in_flight
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
        stream = Stream(write, self._max_in_flight, ordered=method.ordered)

        def answer(encoded: bytes) -> Awaitable[bytes]:
            return self._dispatcher.answer(method, encoded, Call(call.deadline, call.client, call.span, call.peer))

        try:
            with self._places.take(call.peer(), lambda: stream.idle):
                self._open.add(stream)
                self._metrics.open_streams.inc()
                try:
                    await stream.run(requests, answer)
                finally:
                    self._open.discard(stream)
                    self._metrics.open_streams.dec()
        except TooBusy as error:
            raise self._counted(method, error) from None
        if stream.stopped:
            raise self._counted(method, Stopping("the server is stopping"))

    def _counted(self, method: Method[Any, Any], error: RequestError) -> RequestError:
        self._dispatcher.count_refusal(method.name, error)
        return error


class Stream:
    """One open stream. Backpressure: with `max_in_flight` requests in progress or unread answers, it reads no further.

    Attributes:
        stopped: True once `stop` has ended the stream.
    """

    def __init__(self, write: Callable[[bytes], Awaitable[None]], max_in_flight: int, *, ordered: bool):
        """Sends answers by `write`, in the order of the requests if `ordered`."""
        self._write = write
        self._ordered = ordered
        self._slots = asyncio.Semaphore(max_in_flight)
        self._answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()  # None wakes `run` up
        self._in_progress: set[asyncio.Future[bytes]] = set()
        self._reading = True
        self.stopped = False

    async def run(self, requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Runs until the caller half-closes or `stop` is called, and all requests read so far are answered.

        Raises:
            RequestError: raised by `answer`.
        """
        reader = asyncio.create_task(self._read(requests, answer))
        try:
            while self._reading or self._in_progress or not self._answers.empty():
                task = await self._answers.get()
                if task is None:
                    continue
                await self._write(await task)
                self._in_progress.discard(task)
                self._slots.release()
            if not self.stopped:
                await reader
        finally:
            unfinished: list[asyncio.Future[Any]] = [reader, *self._in_progress]
            for future in unfinished:
                future.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """True while no request is in progress and no answer is unread."""
        return not self._in_progress

    def stop(self) -> None:
        """Reads no further, and ends the stream once the requests read so far are answered."""
        self.stopped, self._reading = True, False
        self._answers.put_nowait(None)

    async def _read(self, requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        try:
            async for encoded in requests:
                await self._slots.acquire()
                if not self._reading:
                    return
                task = asyncio.ensure_future(answer(encoded))
                self._in_progress.add(task)
                if self._ordered:
                    self._answers.put_nowait(task)
                else:
                    task.add_done_callback(self._answers.put_nowait)
        finally:
            self._reading = False
            self._answers.put_nowait(None)
