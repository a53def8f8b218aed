"""Replicas of the service, like the pods of a headless Service: each at its own address, all on the same ports."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.deploy.manifests import KUBERNETES
from tests.support.service import Service, service

WORKERS = ("--workers", "2")
"""Flags for as many workers as in a pod of two cores, on any machine."""

_NOT_FROM_PODS = ("DIGITS_HOST", "DIGITS_LOG_FORMAT")

SETTINGS = dict(line.split("=", 1) for line in (KUBERNETES / "base/settings.env").read_text().split())
"""The settings of the pods."""


@dataclass(frozen=True)
class Replica:
    """A running replica.

    Attributes:
        address: its own address of the loopback network.
        service: the process.
    """

    address: str
    service: Service

    def answered(self) -> int:
        """Returns the number of answered calls since the start."""
        return int(self.service.scrape("digits_requests_total", code="OK"))

    def terminate(self) -> None:
        """Sends SIGTERM, as the kubelet does, so that the replica drains and stops."""
        self.service.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, int]:
        """Waits for the end after `terminate`. Returns the exit status and the number of answered calls."""
        status, log = self.service.end()
        counted = re.search(r"by status code: \{.*?'OK': (\d+)", log)
        return status, int(counted[1]) if counted else 0


@contextmanager
def replica(address: str, grpc_port: int, metrics_port: int, *flags: str) -> Iterator[Replica]:
    """Starts a replica with the settings of the pods, except for its address and log format, and with these flags."""
    settings = {name: value for name, value in SETTINGS.items() if name not in _NOT_FROM_PODS}
    where = ("--host", address, "--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port))
    with service(*where, *flags, **settings) as started:
        yield Replica(address, started)
