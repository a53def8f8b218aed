r"""A thread for work on long messages: to decompress, convert and parse them would hold the event loop.

    request -> queue of requests, bounded -\
                                            by turns -> thread -> result
    answer  -> queue of answers -----------/

In each queue, clients take turns, then their connections. A turn costs its bytes, or its time where that is more.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any, TypeVar

from serving.call import Call, Source
from serving.errors import DeadlineExceeded, Stopping, TooBusy
from serving.inference.fair_queue import FairQueue

LONG_BYTES = 1 << 17
"""Messages above this size are worked on aside. Methods whose messages take longer by the byte have a smaller limit."""

# KiB of messages that wait for the thread, at most: nothing else bounds them once they have arrived.
_MAX_WAITING_KIB = 64 << 10

# Messages count in whole turns, so that none of them shares its turn: a kilobyte of gzip may hold a megabyte.
_TURN_KIB = 32
_KIB_PER_SECOND = _TURN_KIB * 1000  # cost of the thread's time; to decompress and parse an ordinary message costs less

Result = TypeVar("Result")


class ThreadBusy(TooBusy):
    """Too many long messages wait, or a client with fewer needs the place of this one, of which nothing is known."""


class _Job:
    """Work on one message.

    Attributes:
        work: returns the result.
        source: the client, and its connection.
        deadline: on the clock of time.monotonic.
        done: resolves to the result; cancelled once the caller has gone.
        count: KiB that the message counts for, in whole turns.
        taken: KiB that have had their turn. The work runs after the last.
    """

    __slots__ = ("count", "deadline", "done", "source", "taken", "work")

    def __init__(self, work: Callable[[], Any], size: int, source: Source, deadline: float):
        self.work = work
        self.source = source
        self.deadline = deadline
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.count = max(1, -(-size // (_TURN_KIB << 10))) * _TURN_KIB
        self.taken = 0

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def is_over(self) -> bool:
        """Fails a late job; returns True also for one that has ended."""
        if time.monotonic() > self.deadline:
            self.fail(DeadlineExceeded("the deadline passed before the message was read"))
        return self.done.done()


class SideThread:
    """Works on one long message at a time, by turns of clients, while the event loop goes on.

    It helps only where the work gives the interpreter up now and then: NumPy and zlib do, and Python code. A function in C
    that does not, such as a parser, must get bounded work.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="long-messages")
        self._requests: FairQueue[_Job] = FairQueue(_TURN_KIB)
        self._answers: FairQueue[_Job] = FairQueue(_TURN_KIB)
        self._next, self._other = self._requests, self._answers
        self._working: asyncio.Task[None] | None = None
        self._draining = self._closed = False

    async def run(self, work: Callable[[], Result], size: int, call: Call) -> Result:
        """Returns what `work` makes of a request, or raises what it raises.

        Args:
            work: it is left out if the caller goes, or the deadline passes, before it begins. Else it runs to its end.
            size: bytes of the message that it keeps.
            call: the call that the message belongs to, whose client gets a turn.

        Raises:
            ThreadBusy: too many bytes wait for the thread; or a client with fewer needs their room.
            DeadlineExceeded: the deadline of the call passed before its turn.
            Stopping: the thread takes no more requests.
        """
        if self._draining:
            raise Stopping("the server is stopping")
        job = _Job(work, size, call.source, call.deadline)
        self._make_room(job)
        result: Result = await self._wait_for(job, self._requests)
        return result

    async def encode(self, work: Callable[[], Result], size: int, call: Call) -> Result:
        """Returns what `work` makes of an answer. It is never refused: its request is done, counted and charged.

        Calls bound these messages: a caller waits for each of them.

        Args:
            work: it is left out if the caller goes before it begins.
            size: bytes of the answer.
            call: the call that is answered.

        Raises:
            Stopping: the thread was closed.
        """
        result: Result = await self._wait_for(_Job(work, size, call.source, math.inf), self._answers)
        return result

    async def drain(self, seconds: float) -> None:
        """Refuses new requests, and works on those that wait for up to `seconds`. Answers are still taken."""
        self._draining = True
        if self._working:
            await asyncio.wait([self._working], timeout=seconds)

    def close(self) -> None:
        """Drops the work that has not begun, so that it does not delay the end of the process."""
        self._draining = self._closed = True
        for job in [*self._requests.clear(), *self._answers.clear()]:
            job.fail(Stopping("the server is stopping"))
        self._thread.shutdown(wait=False)

    async def _wait_for(self, job: _Job, queue: FairQueue[_Job]) -> Any:
        if self._closed:
            raise Stopping("the server is stopping")
        queue.add(job)
        if self._working is None:  # in an empty context: log lines must not carry the ids of the call that comes first
            self._working = asyncio.get_running_loop().create_task(self._work_off(), context=Context())
        try:
            return await job.done
        finally:
            queue.drop(job)
            del job.work  # the frames of an error keep the job, and the work keeps the message

    async def _work_off(self) -> None:
        """Works on message after message, of requests and of answers in turn, until none waits."""
        try:
            while self._requests or self._answers:
                queue, self._next, self._other = self._next, self._other, self._next
                if job := _take(queue):
                    await self._work(job, queue)
        finally:
            self._working = None

    async def _work(self, job: _Job, queue: FairQueue[_Job]) -> None:
        began = time.monotonic()
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, job.work)
        except Exception as error:
            job.fail(error)
        else:
            if not job.done.done():
                job.done.set_result(result)
        queue.charge(job.source, max(0.0, (time.monotonic() - began) * _KIB_PER_SECOND - job.count))

    def _make_room(self, job: _Job) -> None:
        """Ends messages of the client with most in favour of another's; raises ThreadBusy where no client has more."""
        queue = self._requests
        while (excess := queue.waiting + job.count - _MAX_WAITING_KIB) > 0:
            largest = queue.heavier_than(job.source, job.count, excess)
            if largest is None:
                raise ThreadBusy(f"long messages of {_MAX_WAITING_KIB} KiB wait to be read, which is the limit")
            queue.drop(largest)
            largest.fail(ThreadBusy("too many long messages wait to be read, and other clients have fewer"))


def _take(queue: FairQueue[_Job]) -> _Job | None:
    """Returns the job whose last turn has come, having charged the turns before it."""
    while turn := queue.take_turn(_MAX_WAITING_KIB, _Job.is_over):
        ((job, _),) = turn
        if job.taken == job.count:
            return job
    return None
