"""A `digits serve` in a process of its own, for tests and benchmarks."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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

    def scrape(self, series: str) -> float:
        """What a metric says now; 0 for a series that has not begun."""
        with urllib.request.urlopen(self.metrics, timeout=20) as page:
            found = re.search(rf"^{re.escape(series)} (\S+)$", str(page.read(), "utf-8"), re.MULTILINE)
        return float(found[1]) if found else 0.0


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
            log = [process.stderr.readline(), process.stderr.readline()]
            found = re.search(r"(\S+) for gRPC, (http://\S+)", log[0])
            if found is None:
                raise RuntimeError("".join(log))
            yield Service(process, found[1], found[2])
        finally:
            process.kill()
