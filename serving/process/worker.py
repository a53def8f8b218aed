"""One of several worker processes: `python -m serving.process.worker FILE_DESCRIPTOR`, as the supervisor starts it."""

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import stat
import sys
from pathlib import Path

from serving.errors import CannotStart
from serving.process.run import collect_less, leave, run
from serving.process.server import Server
from serving.process.shutdown import Stop
from serving.process.worker_channel import Channel, Control
from serving.settings import Settings
from serving.telemetry import logs, multiprocess_metrics

log = logging.getLogger(__name__)

# The kernel keeps a table up to the highest descriptor, 8 bytes each; this is beyond the connections of a worker.
_HIGH_DESCRIPTOR = 1 << 16

# Signs of life in the time after which the supervisor takes this process for stuck.
_BEATS = 6


def main() -> int:
    """Serves until the supervisor says otherwise, or is gone; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal, or systemd, sends them to all; the supervisor decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    line = socket.socket(fileno=int(sys.argv[1]))
    return asyncio.run(_work(line))


async def _work(line: socket.socket) -> int:
    channel = await Channel.open(line)
    begin = await channel.receive()
    if begin is None:  # the supervisor is gone already
        return 1
    directory = Path(begin["directory"])
    multiprocess_metrics.count_as(begin["number"], directory)
    settings = Settings(**begin["settings"])
    logs.configure(settings.log_format, settings.log_level)
    orphaned = Stop(settings.drain_seconds, settings.grace_seconds)
    control = Control(channel, directory, begin["unloaded"], orphaned)
    try:
        server = Server(settings, control=control)
        collect_less()
        await server.start()
    except Exception as error:
        reason = str(error)
        if not isinstance(error, CannotStart):  # a mistake of ours
            reason = f"unexpected {type(error).__name__}: {error}; the log has its traceback"
            logs.log_event(log, logging.ERROR, "worker_broken", f"worker {begin['number']}: {reason}", exc_info=True)
        channel.send("failed", reason=reason)
        await channel.close()
        return 1
    _stop_listening_first()
    channel.send("started", **server.describe()._asdict())
    obeying = asyncio.create_task(control.obey(server.repository))
    beating = asyncio.create_task(control.beat(settings.watchdog_seconds / _BEATS))
    stuck = await run(server, control.stops)
    obeying.cancel()
    beating.cancel()
    await channel.close()
    if stuck:
        leave()
    return 0


def _stop_listening_first() -> None:
    """Sees to it that, should this process be killed, it stops listening before its connections break.

    Linux closes what a killed process had open from the highest file descriptor down, and connections have higher ones than
    the sockets that listen. Callers thus connect again to a worker that is about to be no more, are thrown out, and gRPC
    fails all their calls for a second before it tries another: so it went in 2 of 10 kills under load, and with this in none
    of 50. It is what net.ipv4.tcp_migrate_req=1 would do, but that is not ours to set.
    """
    high = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _HIGH_DESCRIPTOR) // 2
    for descriptor in [int(file.name) for file in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):  # that directory itself was open, and is no more
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as copy:
                    if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        fcntl.fcntl(copy, fcntl.F_DUPFD_CLOEXEC, high)


if __name__ == "__main__":
    sys.exit(main())
