"""Waits for a disk on a thread of its own: a dead network disk holds up neither the event loop nor the exit."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


async def on_disk_thread(
    work: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
) -> _Result:
    """Calls `work` on a new daemon thread, and returns or raises what it does.

    asyncio.to_thread would not do: at the exit Python waits for its threads, and a disk may never answer.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()
    context = copy_context()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error, it is the result

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(work, *arguments, **named)
        except BaseException as raised:  # it belongs to the caller
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="disk", daemon=True).start()
    return await done
