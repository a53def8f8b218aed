"""One worker process, as its supervisor sees it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from dataclasses import dataclass, field

from serving.child_process import kill, python_path
from serving.process.message_channel import MessageChannel
from serving.process.shutdown import Stop

EXIT_SECONDS = 3.0
"""Time for a worker to exit, beyond drain and grace or once its channel is closed, before it is killed."""


@dataclass(eq=False)
class WorkerProcess:
    """One worker process.

    Attributes:
        number: its index, from 0, which its replacement inherits.
        process: the operating system's process.
        channel: the supervisor's end of the messages.
        answers: true once the worker has started, until it is dead.
        unready: the reason why it accepts no traffic; empty when it does.
        born: start time, `time.monotonic`.
        missed_checks: checks of the watchdog since its last message.
    """

    number: int
    process: Process
    channel: MessageChannel
    answers: bool = False
    unready: str = "starting"
    born: float = field(default_factory=time.monotonic)
    missed_checks: int = 0

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"

    def stop(self, stop: Stop) -> None:
        """Asks the worker to drain and exit."""
        self.channel.send("stop", drain_seconds=stop.drain_seconds, grace_seconds=stop.grace_seconds)

    def kill(self) -> None:
        """Kills the worker, if it lives."""
        kill(self.process)

    async def reap(self, *, kill: bool) -> int:
        """Waits for the end of a worker that has closed its channel, and closes the supervisor's end.

        Args:
            kill: kill the worker if it does not exit soon. A traceback takes a moment, so it is not killed at once.

        Returns:
            Its exit status.
        """
        if kill:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), EXIT_SECONDS)
            self.kill()
        status = await self.process.wait()
        await self.channel.close()
        return status


async def spawn(number: int, lock: int, mask: asyncio.Lock) -> WorkerProcess:
    """Starts a worker process. It waits for its configuration, which is its first message.

    Args:
        number: its index, from 0.
        lock: file descriptor of the lock on the metrics directory, which the process inherits.
        mask: held while the signal mask of this process is changed: two changes at once would not be undone.

    Raises:
        OSError: the process can't be started.
    """
    near, far = socket.socketpair()
    channel = await MessageChannel.open(near)
    try:
        async with mask:
            # A worker ignores these signals, which a terminal sends to it as well. They wait until it has begun to.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "serving.process.worker", str(far.fileno())),
                    stdin=DEVNULL,
                    pass_fds=(far.fileno(), lock),
                    env={**os.environ, "PYTHONPATH": python_path()},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except OSError:
        await channel.close()
        raise
    finally:
        far.close()
    return WorkerProcess(number, process, channel)
