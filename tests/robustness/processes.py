"""Processes of a service: the one that was started and all below it, and the memory that they hold."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

_PAGE_MEGABYTES = os.sysconf("SC_PAGESIZE") / 1e6
_SAMPLE_SECONDS = 0.02
_GONE = (FileNotFoundError, ProcessLookupError)

_GUARD_MEGABYTES = 4000.0
"""Memory beyond which a service is killed, so that an attack that works does not take the whole machine."""


def children(pid: int) -> list[int]:
    """Returns the ids of the processes that a process has started: the workers of a supervisor."""
    found: list[int] = []
    with suppress(*_GONE):  # the process may end while its threads are listed
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(*_GONE):  # or one of its threads
                found += map(int, (thread / "children").read_text().split())
    return found


def tree(pid: int) -> list[int]:
    """Returns the ids of a process and of all processes below it; empty once it has ended."""
    found = [pid] if _lives(pid) else []
    for child in children(pid):
        found += tree(child)
    return found


def _lives(pid: int) -> bool:
    with suppress(*_GONE):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def megabytes(pid: int) -> float:
    """Returns the resident memory of a process and of all below it. Pages that processes share count for each."""
    total = 0.0
    for one in tree(pid):
        with suppress(*_GONE):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * _PAGE_MEGABYTES
    return total


def kill(pid: int) -> None:
    """Kills a process and all below it."""
    for one in tree(pid):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


class MemoryWatch:
    """Samples the memory of a service in a thread, until it is closed. A service that takes far too much is killed.

    Attributes:
        peak: the highest sum of resident memory, megabytes.
    """

    def __init__(self, pid: int):
        """Starts to sample the process with this id and all below it."""
        self._pid = pid
        self.peak = megabytes(pid)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory watch", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._closed.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, now := megabytes(self._pid))
            if now > _GUARD_MEGABYTES:
                kill(self._pid)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()


def settled(pid: int, at_most: float, seconds: float) -> float:
    """Waits until the memory falls to `at_most` megabytes, or until the time is over. Returns the last value."""
    end = time.monotonic() + seconds
    while (now := megabytes(pid)) > at_most and time.monotonic() < end:
        time.sleep(0.1)
    return now
