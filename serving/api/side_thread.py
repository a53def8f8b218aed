"""A thread for work on long messages: to decompress, convert and parse them would hold the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.errors import TooBusy

LONG_BYTES = 1 << 17
"""Messages above this size are worked on aside. Methods whose messages take longer by the byte have a smaller limit."""

# Bytes of messages that wait for the thread, at most: nothing else bounds them once they have arrived.
_MAX_WAITING_BYTES = 64 << 20

Result = TypeVar("Result")


class ThreadBusy(TooBusy):
    """Too many long messages wait. Nothing is known of this one."""


class SideThread:
    """Works on long messages one after the other, while the event loop goes on.

    It helps only where the work gives the interpreter up now and then: NumPy and zlib do, and Python code. A function in C
    that does not, such as a parser, must get bounded work.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="long-messages")
        self._waiting_bytes = 0

    async def run(self, work: Callable[[], Result], size: int) -> Result:
        """Returns what `work` returns, or raises what it raises.

        Args:
            work: it runs to its end, also when the caller has gone.
            size: bytes of the message that it keeps.

        Raises:
            ThreadBusy: too many bytes wait for the thread.
        """
        if self._waiting_bytes + size > _MAX_WAITING_BYTES:
            raise ThreadBusy(f"long messages of {_MAX_WAITING_BYTES} bytes wait to be parsed, which is the limit")
        self._waiting_bytes += size
        working = asyncio.get_running_loop().run_in_executor(self._thread, work)
        working.add_done_callback(lambda done: self._release(done, size))
        return await asyncio.shield(working)

    def close(self) -> None:
        """Drops the work that has not begun, so that it does not delay the end of the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _release(self, done: "asyncio.Future[Result]", size: int) -> None:
        self._waiting_bytes -= size
        if not done.cancelled():
            done.exception()  # else asyncio logs the error of a caller who has gone
