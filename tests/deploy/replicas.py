"""Replicas of the service as the pods of a headless Service are: each at an address of its own, all on the same ports."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.deploy.manifests import KUBERNETES
from tests.support.service import Service, service

WORKERS = ("--workers", "2")
"""Flags: as many as in a pod of two cores, whatever this machine has."""

_OTHERWISE_HERE = ("DIGITS_HOST", "DIGITS_LOG_FORMAT")

SETTINGS = dict(line.split("=", 1) for line in (KUBERNETES / "base/settings.env").read_text().split())
"""What all pods are set to."""


@dataclass(frozen=True)
class Replica:
    """One that answers.

    Attributes:
        address: its own, of loopback.
    """

    address: str
    service: Service

    def answered(self) -> int:
        """Calls, since it began."""
        return int(self.service.scrape("digits_requests_total", code="OK"))

    def terminate(self) -> None:
        """Tells it to drain and stop, as the kubelet does."""
        self.service.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, int]:
        """Its exit status, once it has stopped as it was told to, and the calls that it had answered."""
        status, log = self.service.end()
        counted = re.search(r"by status code: \{.*?'OK': (\d+)", log)
        return status, int(counted[1]) if counted else 0


@contextmanager
def replica(address: str, grpc_port: int, metrics_port: int, *flags: str) -> Iterator[Replica]:
    """One with the settings of the pods, but for where it listens and what its log is like, and with these flags."""
    settings = {name: value for name, value in SETTINGS.items() if name not in _OTHERWISE_HERE}
    where = ("--host", address, "--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port))
    with service(*where, *flags, **settings) as started:
        yield Replica(address, started)
