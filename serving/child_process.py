"""Child processes: imports the package that this process runs, and kills one without taking its exit status."""

import contextlib
import os
import signal
from asyncio.subprocess import Process
from pathlib import Path


def python_path() -> str:
    """Returns a PYTHONPATH by which a child imports this package, not one from the working directory."""
    others = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(Path(__file__).parents[1]), *([others] if others else [])])


def kill(process: Process) -> None:
    """Kills a child, if it lives."""
    if process.returncode is None:
        # Process.kill() polls first, and would take the exit status from the task that waits for it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
