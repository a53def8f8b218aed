"""One open stream of requests: many of them in work at once, and no more read than its caller takes answers for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any


class Stream:
    """Reads no further than so many requests ahead of the answers that its caller has taken.

    Attributes:
        stopped: it was asked to end before its caller had ended.
    """

    def __init__(self, write: Callable[[bytes], Awaitable[None]], max_in_flight: int, *, ordered: bool):
        """Sends answers by `write`, which returns when there is room for the next."""
        self._write = write
        self._ordered = ordered
        self._slots = asyncio.Semaphore(max_in_flight)
        self._answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()  # None: look whether it is over
        self._in_work: set[asyncio.Future[bytes]] = set()
        self._reading = True
        self.stopped = False

    async def run(self, requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Answers until the caller has half-closed, or it is stopped, and what was read is answered.

        Raises:
            RequestError: what `answer` raised.
        """
        reader = asyncio.create_task(self._read(requests, answer))
        try:
            while self._reading or self._in_work or not self._answers.empty():
                task = await self._answers.get()
                if task is None:
                    continue
                await self._write(await task)
                self._in_work.discard(task)
                self._slots.release()
            if not self.stopped:
                await reader
        finally:
            unfinished: list[asyncio.Future[Any]] = [reader, *self._in_work]
            for future in unfinished:
                future.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    def stop(self) -> None:
        """Reads no further, and ends the stream when what was read is answered."""
        self.stopped, self._reading = True, False
        self._answers.put_nowait(None)

    async def _read(self, requests: AsyncIterator[bytes], answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        try:
            async for encoded in requests:
                await self._slots.acquire()
                if not self._reading:
                    return
                task = asyncio.ensure_future(answer(encoded))
                self._in_work.add(task)
                if self._ordered:
                    self._answers.put_nowait(task)
                else:
                    task.add_done_callback(self._answers.put_nowait)
        finally:
            self._reading = False
            self._answers.put_nowait(None)
