"""The server and the interpreter that the blocks of a document run in."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SECONDS = 60  # for one command or block; the longest take about two
LOG_SECONDS = 5  # a line that is not in the log by then is not written

_INTERPRETER = """
import sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    try:
        with open(line.strip(), encoding="utf-8") as file:
            exec(compile(file.read(), line.strip(), "exec"), names)
        ending = "passed"
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        ending = "failed"
    print(f"\\0{ending}", flush=True)
"""


class Server:
    """A server that a command of a document has started; its output goes to a file."""

    def __init__(self, command: str, directory: Path, environment: dict[str, str], metrics_port: str):
        """Starts the server, and waits until it is ready.

        Args:
            command: a simple command, such as `digits serve`, with variables before it or without.
            directory: the working directory.
            environment: all variables.
            metrics_port: the port that answers /readyz.

        Raises:
            RuntimeError: the server did not start.
        """
        self._log = directory / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-euc", f"exec env {command}"],
                cwd=directory,
                env=environment,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        deadline = time.monotonic() + SECONDS
        while not _ready(metrics_port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the server did not start\n{self._log.read_text()}")
            time.sleep(0.05)

    def log(self, complete: Callable[[str], bool]) -> str:
        """Returns the log once it is complete, or after LOG_SECONDS as far as it is."""
        deadline = time.monotonic() + LOG_SECONDS
        while True:
            lines = self._log.read_text(errors="replace").splitlines(keepends=True)
            # The test asked for readiness, not the reader; and the machine was busy.
            text = "".join(line for line in lines if not any(other in line for other in ("GET /readyz", "loop_held")))
            if complete(text) or time.monotonic() > deadline:
                return text
            time.sleep(0.05)

    def stop(self) -> None:
        """Sends SIGTERM, and waits until the server is gone."""
        try:
            self._process.terminate()
            self._process.wait(SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Interpreter:
    """A Python interpreter that runs one script after the other with the same names."""

    def __init__(self, directory: Path, environment: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _INTERPRETER],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: Path) -> tuple[str, bool]:
        """Runs a script; returns its output, and True where it ended without an exception."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{script}\n")
        self._process.stdin.flush()
        printed = ""
        for line in self._process.stdout:
            text, ended, ending = line.partition("\0")
            printed += text
            if ended:
                return printed, ending == "passed\n"
        return printed, False

    def close(self) -> None:
        """Ends the interpreter."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(SECONDS)


def _ready(metrics_port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/readyz", timeout=SECONDS) as page:
            return bool(page.status == 200)
    except OSError:
        return False
