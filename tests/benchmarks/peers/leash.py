"""`python leash.py COMMAND ...`: runs a command until its own standard input is closed, and leaves nothing of it behind.

What the command starts may start more, in sessions of their own, and outlive what started it. Here an orphan becomes a child
of this process (prctl(2), PR_SET_CHILD_SUBREAPER), so all are found, and killed. Standard input is closed as well when
whoever has started this process is killed.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

_SET_CHILD_SUBREAPER = 36
_POLITE_SECONDS = 10.0


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it may end meanwhile
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def main(command: list[str]) -> int:
    """The exit status of the command, below 0 by a signal."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no subreaper")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # were it ignored here, the command would ignore it too
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    select.select([sys.stdin, os.pidfd_open(child.pid)], [], [])
    child.send_signal(signal.SIGINT)  # Ctrl-C, which they all know: so they can remove what they have in shared memory
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_POLITE_SECONDS)
    while below := descendants(os.getpid()):
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
    return child.returncode or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
