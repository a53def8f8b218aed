"""`digits serve` in processes of its own, for tests and benchmarks."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
DIGITS = [sys.executable, "-m", "serving"]


@dataclass
class Service:
    """A server that answers.

    Attributes:
        process: the server, or the supervisor of its workers; the log is on `process.stderr`.
        address: host:port for gRPC.
        metrics: URL of the metrics of all its workers.
    """

    process: subprocess.Popen[str]
    address: str
    metrics: str

    def scrape(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric's samples with these labels; 0 without such a sample."""
        with urllib.request.urlopen(self.metrics, timeout=20) as page:
            metrics = text_string_to_metric_families(str(page.read(), "utf-8"))
        samples = [sample for metric in metrics for sample in metric.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def workers(self) -> list[int]:
        """Returns the process ids of the living workers; empty for a server without workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> tuple[int, str]:
        """Waits until every process that writes the log has ended. Returns the exit status, and the rest of the log."""
        return _ended(self.process)


def launch(*flags: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a server on free ports, in a process group of its own; it may still refuse to start.

    Args:
        flags: of `digits serve`.
        environment: variables added to those of this process.
    """
    return _launch(flags, environment, None)


def _launch(flags: Sequence[str], environment: Mapping[str, str], directory: Path | None) -> subprocess.Popen[str]:
    command = [*DIGITS, "serve", "--grpc-port", "0", "--metrics-port", "0", *flags]
    variables = {**os.environ, **environment}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=directory, env=variables, process_group=0)


def refused(*flags: object, **environment: str) -> tuple[int, str]:
    """Starts a server that can't run. Returns its exit status and its error message."""
    with launch(*map(str, flags), **environment) as process:
        return _ended(process)


def _ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, log = process.communicate(timeout=40)
    return process.returncode, log


@contextmanager
def service(*flags: str, **environment: str) -> Iterator[Service]:
    """Runs a server that answers when the block begins, and is gone when the block ends; arguments as for `launch`."""
    with _answering(launch(*flags, **environment)) as started:
        yield started


@contextmanager
def service_of(checkout: Path, *flags: str) -> Iterator[Service]:
    """Runs a server like `service`, but with the code of another checkout."""
    with _answering(_launch(flags, {"PYTHONPATH": str(checkout)}, checkout)) as started:
        yield started


@contextmanager
def _answering(process: "subprocess.Popen[str]") -> Iterator[Service]:
    with process:
        try:
            assert process.stderr is not None
            log: list[str] = []
            while not log or (log[-1] and "recognize --address" not in log[-1]):
                log.append(process.stderr.readline())
            found = re.search(r"(\S+) for gRPC, (http://\S+)", "".join(log))
            if found is None:
                raise RuntimeError("".join(log))
            yield Service(process, found[1], found[2])
        finally:
            # The workers belong to the process group, which outlives a supervisor that was killed alone.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that are free now, outside the range from which Linux serves port 0 and new connections."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), k=1_000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free port among a thousand between 20000 and 32000")
