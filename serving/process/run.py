"""Serves in one process, until a stop request or a signal ends it."""

import asyncio
import gc
import logging
import os
from typing import NoReturn

from serving.process.server import Server
from serving.process.shutdown import Stop, watch_signals
from serving.process.startup_log import log_started, log_stopped
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.native_lines import native_lines_to_log

log = logging.getLogger(__name__)

_COLLECTION_THRESHOLD = 20_000  # new objects, some megabytes; Python's default is 700


async def serve(settings: Settings) -> None:
    """Serves in this process alone until SIGTERM or SIGINT, then drains.

    Raises:
        CannotStart: as `Server` and its `start` do.
    """
    stops = watch_signals(settings)
    server = Server(settings)
    relax_garbage_collection()
    if not await start_unless_stopped(server, stops):
        log_stopped(server.metrics.registry)
        return
    log_started(settings, server.describe(), server.grpc_port, server.metrics_port)
    with native_lines_to_log():
        unfinished = await run_until_stopped(server, stops)
    log_stopped(server.metrics.registry)
    if unfinished:
        exit_now()


async def start_unless_stopped(server: Server, stops: "asyncio.Queue[Stop]") -> bool:
    """Starts a server. A stop request ends the start, which may wait for a model that hangs; returns False then.

    Raises:
        CannotStart: as `Server.start` does.
    """
    starting = asyncio.create_task(server.start())
    requested = asyncio.create_task(stops.get())
    await asyncio.wait({starting, requested}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.repository.close(0)
        return False
    if requested.done():
        stops.put_nowait(requested.result())
    requested.cancel()
    await starting
    return True


async def run_until_stopped(server: Server, stops: "asyncio.Queue[Stop]") -> int:
    """Runs a started server until a stop request comes; a later request cuts the shutdown short.

    Returns:
        Number of model runs that have not ended. Their threads block a normal exit: call `exit_now`.
    """
    stopping: asyncio.Task[int] | None = None
    requested = asyncio.create_task(stops.get())
    while stopping is None or not stopping.done():
        await asyncio.wait({requested, *([stopping] if stopping else [])}, return_when=asyncio.FIRST_COMPLETED)
        if requested.done():
            if stopping and not stopping.done():
                stopping.cancel()
                await asyncio.gather(stopping, return_exceptions=True)
            stop = requested.result()
            stopping = asyncio.create_task(server.stop(stop.drain_seconds, stop.grace_seconds))
            requested = asyncio.create_task(stops.get())
    requested.cancel()
    unfinished = stopping.result()
    if unfinished:
        message = f"{unfinished} runs of the model have not ended; exiting without them"
        log_event(log, logging.ERROR, "runs_left", message, runs=unfinished)
    return unfinished


def relax_garbage_collection() -> None:
    """Excludes imported objects from garbage collection and runs it less often: it took a tenth of the time of a call."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTION_THRESHOLD)


def exit_now() -> NoReturn:
    """Exits with status 1, without waiting for threads of model runs."""
    logging.shutdown()
    os._exit(1)
