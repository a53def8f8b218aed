"""Runs a command until standard input closes, then kills all its processes: `python leash.py COMMAND ...`.

The command may start processes in sessions of their own, which outlive their parents. An orphan becomes a child of this
process (prctl(2), PR_SET_CHILD_SUBREAPER), so all of them are found and killed. Standard input also closes when the process
that started this one is killed.
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
    """Returns the ids of all processes below one."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # the process may have ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def main(command: list[str]) -> int:
    """Runs the command; returns its exit status, negative after a signal."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no subreaper")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the command would inherit an ignored SIGINT
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    select.select([sys.stdin, os.pidfd_open(child.pid)], [], [])
    child.send_signal(signal.SIGINT)  # all peers handle Ctrl-C, and remove their shared memory
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
