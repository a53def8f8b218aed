"""What a front may not keep once its clients have gone, and what may not happen meanwhile."""

import asyncio
import gc
import logging
from typing import Any

import psutil

from serving.transport.http2_front.front import Http2Front
from tests.fuzz.http2.client import connect
from tests.fuzz.http2.handlers import PATHS, Broken, Handlers
from tests.support.http2_client import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    frame,
    grpc_message,
    header_block,
)

_MOST_TURNS = 30  # of the event loop, until every task of a client that has gone has ended
_ECHOED = b"echoed"
_MOST_GROWTH = 24 << 20  # bytes; what allocators keep varies by several megabytes


class Fault(Exception):
    """The front did something that it must not do."""


class Watch(logging.Handler):
    """Collects what would otherwise be logged only: errors of callbacks and of tasks, and errors of the front."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__(logging.WARNING)
        self.faults: list[str] = []
        loop.set_exception_handler(self._take)
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.WARNING)
        for handler in [*logging.getLogger().handlers]:
            if handler is not self:
                logging.getLogger().removeHandler(handler)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, Broken):
            self.faults.append(f"{record.getMessage()}: {error!r}")

    def _take(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")


async def check_nothing_is_left(front: Http2Front, handlers: Handlers, watch: Watch) -> None:
    """Raises Fault if anything of clients that have gone is left, or if anything went wrong meanwhile."""
    if working := handlers.side_thread._working:  # work that has begun goes on when its caller has gone
        await asyncio.wait([working])
    for _ in range(_MOST_TURNS):
        await asyncio.sleep(0)
        if len(asyncio.all_tasks()) == 1:
            break
    left = {
        "tasks": len(asyncio.all_tasks()) - 1,
        "open calls": front.open_calls,
        "calls without a task": len(handlers.waiting),
        "request bytes": front._request_bytes,
        "answer bytes": front._answer_bytes,
        "peers": len(front._peers),
        "connections": len(front._connections),
    }
    if any(left.values()):
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        raise Fault(f"left: {left} {tasks}")
    if watch.faults:
        raise Fault("; ".join(watch.faults))


async def check_answers(front: Http2Front, handlers: Handlers) -> None:
    """Raises Fault if an ordinary client is not answered."""
    before = handlers.counts["echoed"]
    connection, transport = connect(front, "10.0.0.9")
    request = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, header_block(PATHS[0]))
    request += frame(DATA, END_STREAM, 1, grpc_message(_ECHOED))
    connection.get_buffer(-1)[: len(request)] = request
    connection.buffer_updated(len(request))
    for _ in range(_MOST_TURNS):
        await asyncio.sleep(0)
    if handlers.counts["echoed"] != before + 1 or connection.exchanges or not connection.engine.delivered:
        raise Fault("an ordinary call was not answered")
    transport.break_off()
    await asyncio.sleep(0)


class Memory:
    """Compares the memory of this process with that after a warm-up."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before: tuple[int, int] | None = None

    def check(self) -> str:
        """Returns the growth in words; the first call is the start. Raises Fault for too much growth."""
        gc.collect()
        now = self._process.memory_info().rss, len(gc.get_objects())
        if self._before is None:
            self._before = now
        grown, objects = (after - before for after, before in zip(now, self._before, strict=True))
        if grown > _MOST_GROWTH:
            raise Fault(f"memory grew by {grown >> 20} MB, and by {objects} objects")
        return f"{now[0] >> 20} MB, {grown / (1 << 20):+.1f} MB and {objects:+} objects since the warm-up"
