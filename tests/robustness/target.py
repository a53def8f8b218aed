"""`digits serve` as its users start it, with its log in a file and one model in a directory of its own."""

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serving.repository.versions import latest
from tests.robustness.processes import kill
from tests.support.service import DIGITS, ROOT, free_ports

VERSION = 100
"""Version of the model that every target starts with."""

_START_SECONDS = 60


@dataclass
class Target:
    """A service under attack.

    Attributes:
        front: server of the gRPC port, http2 or grpcio.
        directory: of the log, and of the model repository `models`.
        flags: of `digits serve`, without ports, front and models.
        checkout: whose code runs.
        wrapper: command in front of the service's own, such as one that takes rights away.
        log_read: False puts a pipe that nobody reads in place of the log's file.
    """

    front: str
    directory: Path
    flags: tuple[str, ...] = ()
    checkout: Path = ROOT
    wrapper: tuple[str, ...] = ()
    log_read: bool = True

    def __post_init__(self) -> None:
        self.port, self.http_port = free_ports(2)
        self.models = self.directory / "models"
        self.log_file = self.directory / "service.log"
        self._unread: int | None = None
        self.publish(VERSION)
        self.start()

    def start(self) -> None:
        """Starts the service on the same ports, and waits until it is ready. Raises RuntimeError if it never is."""
        command = [*self.wrapper, *DIGITS, "serve", "--grpc-port", str(self.port), "--metrics-port", str(self.http_port)]
        command += ["--models", str(self.models), *self.flags]
        if (self.checkout / "serving" / "transport" / "http2_front").is_dir():  # version 0.1.0 has no other front
            command += ["--front", self.front]
        variables = {**os.environ, "PYTHONPATH": str(self.checkout)}
        with self._log() as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.directory, env=variables, process_group=0
            )
        end = time.monotonic() + _START_SECONDS
        while self.get("readyz") != "200":
            if self.process.poll() is not None or time.monotonic() > end:
                log_text = self.log()
                self.close()
                raise RuntimeError(f"the service did not start: {log_text[-2000:]}")
            time.sleep(0.1)

    def publish(self, version: int, *, mode: int = 0o644) -> Path:
        """Copies the checkout's own model into the repository as a version that appears at once; returns its file."""
        directory = self.models / "digits" / str(version)
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(latest(self.checkout / "serving" / "models").path, directory / "new")
        (directory / "new").chmod(mode)
        return (directory / "new").rename(directory / "model.onnx")

    def _log(self) -> IO[bytes]:
        if self.log_read:
            return self.log_file.open("ab")
        self._unread, write = os.pipe()
        return os.fdopen(write, "wb")

    @property
    def pid(self) -> int:
        """Process id of the server, or of the supervisor of its workers."""
        return self.process.pid

    def log(self) -> str:
        """Returns all of the log so far. Bytes that are not UTF-8 become escapes."""
        return self.log_file.read_bytes().decode(errors="backslashreplace") if self.log_file.exists() else ""

    def get(self, path: str, seconds: float = 2.0) -> str:
        """Returns the HTTP status of a path of the metrics port, or the name of the error."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/{path}", timeout=seconds) as answer:
                return str(answer.status)
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            return type(error).__name__

    def metrics(self) -> str:
        """Returns the page of the metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=20) as page:
            return str(page.read(), "utf-8")

    def versions_with_series(self) -> set[str]:
        """Returns the versions that the metrics name."""
        return set(re.findall(r'version="(\d+)"', self.metrics()))

    def stop(self, seconds: float) -> str:
        """Sends SIGTERM. Returns the exit status, or "still runs" after the time."""
        self.process.terminate()
        try:
            return f"exit {self.process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            return "still runs"

    def close(self) -> None:
        """Kills every process of the service."""
        kill(self.pid)
        with suppress(ProcessLookupError):  # workers without a supervisor are in its process group
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        if self._unread is not None:
            os.close(self._unread)
            self._unread = None
