"""DOC."""

import asyncio
import gc
import logging
import os
from typing import NoReturn

from serving.process.server import Server
from serving.process.shutdown import Stop, stops_by_signal
from serving.process.startup_log import announce, log_stopped
from serving.settings import Settings
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_COLLECTED_AFTER = 20_000  # new objects, some megabytes; 700 otherwise


async def serve(settings: Settings) -> None:
    """Serves in this process alone until SIGTERM, then drains.

    Raises:
        CannotStart: as the Server that is made and started here does.
    """
    stops = stops_by_signal(settings)
    server = Server(settings)
    collect_less()
    await server.start()
    announce(settings, server.describe(), server.grpc_port, server.metrics_port)
    stuck = await run(server, stops)
    log_stopped(server.metrics.registry)
    if stuck:
        leave()


async def run(server: Server, stops: "asyncio.Queue[Stop]") -> int:
    """Lets a server that was started run until it is told to stop; a later order to stop cuts the first short.

    Returns:
        Runs of the model that have not ended: `leave` them.
    """
    stopping: asyncio.Task[int] | None = None
    ordered = asyncio.create_task(stops.get())
    while stopping is None or not stopping.done():
        await asyncio.wait({ordered, *([stopping] if stopping else [])}, return_when=asyncio.FIRST_COMPLETED)
        if ordered.done():
            if stopping and not stopping.done():
                stopping.cancel()
                await asyncio.gather(stopping, return_exceptions=True)
            stop = ordered.result()
            stopping = asyncio.create_task(server.stop(stop.drain_seconds, stop.grace_seconds))
            ordered = asyncio.create_task(stops.get())
    ordered.cancel()
    stuck = stopping.result()
    if stuck:
        log_event(log, logging.ERROR, "runs_left", f"{stuck} runs of the model have not ended; leaving them", runs=stuck)
    return stuck


def collect_less() -> None:
    """Has this process's garbage collector leave alone what was imported, and look less often: it took a tenth of a call."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER)


def leave() -> NoReturn:
    """Ends this process, with status 1, without waiting for runs of the model that have not ended."""
    logging.shutdown()
    os._exit(1)
