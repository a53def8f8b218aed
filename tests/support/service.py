"""A `digits serve` in a process of its own, for tests and benchmarks."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

DIGITS = [sys.executable, "-m", "serving"]


@dataclass
class Service:
    """A server that answers.

    Attributes:
        process: what runs it, alone or as the supervisor of its workers; its log is on `process.stderr`.
        address: host:port for gRPC.
        metrics: URL of its metrics, those of all its workers.
    """

    process: subprocess.Popen[str]
    address: str
    metrics: str

    def scrape(self, name: str, **labels: str) -> float:
        """What a metric says now, added up over the series that have these labels; 0 when there is none."""
        with urllib.request.urlopen(self.metrics, timeout=20) as page:
            metrics = text_string_to_metric_families(str(page.read(), "utf-8"))
        samples = [sample for metric in metrics for sample in metric.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def workers(self) -> list[int]:
        """The process ids of its workers that live, none when it serves alone."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> tuple[int, str]:
        """The exit status of a service that was told to stop, and the rest of its log, once nobody has it open any more."""
        return _ended(self.process)


def launch(*flags: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a server on free ports, in a process group of its own; it may yet refuse to."""
    command = [*DIGITS, "serve", "--grpc-port", "0", "--metrics-port", "0", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, process_group=0)


def refused(*flags: object, **environment: str) -> tuple[int, str]:
    """Exit status and complaint of a server that can't start."""
    with launch(*map(str, flags), **environment) as process:
        return _ended(process)


def _ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, log = process.communicate(timeout=40)
    return process.returncode, log


@contextmanager
def service(*flags: str, **environment: str) -> Iterator[Service]:
    """A server that answers when the block begins, and is gone when it ends."""
    with launch(*flags, **environment) as process:
        try:
            assert process.stderr is not None
            log: list[str] = []
            while not log or (log[-1] and "send it a first digit" not in log[-1]):
                log.append(process.stderr.readline())
            found = re.search(r"(\S+) for gRPC, (http://\S+)", "".join(log))
            if found is None:
                raise RuntimeError("".join(log))
            yield Service(process, found[1], found[2])
        finally:
            # Its workers are of its process group, which lives on where only the first of it was killed.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
