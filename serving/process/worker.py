"""The main program of a worker: `python -m serving.process.worker FILE_DESCRIPTOR`, as the supervisor starts it."""

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path

from serving.errors import CannotStart
from serving.process.listening_sockets import ListeningSockets
from serving.process.message_channel import MessageChannel
from serving.process.run import exit_now, relax_garbage_collection, run_until_stopped, start_unless_stopped
from serving.process.server import Server
from serving.process.shutdown import Stop
from serving.process.supervisor_link import SupervisorLink
from serving.settings import Settings
from serving.telemetry import logs, multiprocess_metrics
from serving.telemetry.native_lines import native_lines_to_log

log = logging.getLogger(__name__)

_HEARTBEATS_PER_TIMEOUT = 6  # of the supervisor's watchdog


def main() -> int:
    """Serves until the supervisor stops this worker, or ends; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal or systemd sends them to all; the supervisor decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    end = socket.socket(fileno=int(sys.argv[1]))
    return asyncio.run(_work(end))


async def _work(end: socket.socket) -> int:
    """Receives the configuration and serves; returns the exit status."""
    channel = await MessageChannel.open(end)
    configuration = await channel.receive()
    if configuration is None:  # the supervisor has ended already
        return 1
    number, directory = configuration["number"], Path(configuration["directory"])
    series = multiprocess_metrics.count_as(number, directory)
    settings = Settings(**configuration["settings"])
    logs.configure(settings.log_format, settings.log_level)
    orphaned = Stop(settings.drain_seconds, settings.grace_seconds)
    link = SupervisorLink(channel, series, configuration["unloaded"], orphaned)
    following: asyncio.Task[None] | None = None
    try:
        server = Server(settings, control=link)
        relax_garbage_collection()
        following = asyncio.create_task(link.follow(server.repository))
        if not await start_unless_stopped(server, link.stops):
            await channel.close()
            return 0
    except Exception as error:
        reason = str(error)
        if not isinstance(error, CannotStart):  # a bug
            reason = f"unexpected {type(error).__name__}: {error}; the log has its traceback"
            logs.log_event(log, logging.ERROR, "worker_broken", f"worker {number}: {reason}", exc_info=True)
        logs.flush()  # the supervisor kills this process once it has the reason
        channel.send("failed", reason=reason)
        if following:
            following.cancel()
        await channel.close()
        return 1
    link.serve(ListeningSockets())
    channel.send("started", **server.describe()._asdict())
    link.apply_changes()
    beating = asyncio.create_task(link.send_heartbeats(settings.watchdog_seconds / _HEARTBEATS_PER_TIMEOUT))
    with native_lines_to_log():
        unfinished = await run_until_stopped(server, link.stops)
    following.cancel()
    beating.cancel()
    await channel.close()
    if unfinished:
        exit_now()
    return 0


if __name__ == "__main__":
    sys.exit(main())
