"""A `digits serve` in a process of its own, for tests and benchmarks."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

DIGITS = [sys.executable, "-m", "serving"]


@dataclass
class Service:
    """A server that answers.

    Attributes:
        process: what runs it; its log is on `process.stderr`.
        address: host:port for gRPC.
        metrics: URL of its metrics.
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


def launch(*flags: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a server on free ports; it may yet refuse to."""
    command = [*DIGITS, "serve", "--grpc-port", "0", "--metrics-port", "0", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


@contextmanager
def service(*flags: str) -> Iterator[Service]:
    """A server that answers when the block begins, and is gone when it ends."""
    with launch(*flags) as process:
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
            process.kill()
