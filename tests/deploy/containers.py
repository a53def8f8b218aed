"""The service in a container, run by podman."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.deploy.load import until
from tests.deploy.podman import Podman, PodmanError
from tests.support.service import free_ports

HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges")
"""Flags as in the manifests: a read-only root, no capabilities, and no way to gain any."""


@dataclass(frozen=True)
class Container:
    """A container with the service.

    Attributes:
        podman: runs the container.
        name: podman's name for the container.
        grpc_port, metrics_port: on 127.0.0.1.
    """

    podman: Podman
    name: str
    grpc_port: int
    metrics_port: int

    @property
    def address(self) -> str:
        """host:port for gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def log(self) -> str:
        """Returns the whole log."""
        return self.podman.attempt("logs", self.name).stderr

    def event(self, name: str) -> dict[str, Any]:
        """Returns the last log event of that name."""
        # ONNX Runtime writes to stderr too, and not in JSON.
        events = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return dict([event for event in events if event["event"] == name][-1])

    def state(self) -> dict[str, Any]:
        """Returns podman's state of the container."""
        return dict(self.podman.inspect(self.name)["State"])

    def execute(self, *command: str) -> str:
        """Runs a program in the container, as the container's user, and returns its output.

        Raises:
            PodmanError: the program failed.
        """
        return self.podman("exec", self.name, *command)

    def status(self, process: int = 1) -> dict[str, str]:
        """Returns the kernel's view of a process: user, capabilities. Source: proc(5), /proc/pid/status."""
        lines = self.execute("cat", f"/proc/{process}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def readiness(self) -> tuple[int, str]:
        """Returns the HTTP status and the text of /readyz; status 0 while the port does not answer."""
        try:
            with urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5) as page:
                return page.status, str(page.read(), "utf-8").strip()
        except HTTPError as refusal:
            with refusal:
                return refusal.code, str(refusal.read(), "utf-8").strip()
        except (URLError, ConnectionError, TimeoutError):
            return 0, ""

    def wait_until_ready(self) -> None:
        """Waits until the service is ready.

        Raises:
            PodmanError: the container has exited. The message contains its log.
        """

        def ready() -> bool:
            if self.readiness()[0] == 200:
                return True
            if not self.state()["Running"]:
                raise PodmanError(f"{self.name} has exited: {self.log()}")
            return False

        until(ready)


@contextmanager
def starting(podman: Podman, image: str, *flags: str, **environment: str) -> Iterator[Container]:
    """Starts the service, hardened, on free ports of 127.0.0.1. Removes it at the end of the block."""
    grpc_port, metrics_port = free_ports(2)
    environment |= {
        "DIGITS_HOST": "127.0.0.1",
        "DIGITS_GRPC_PORT": str(grpc_port),
        "DIGITS_METRICS_PORT": str(metrics_port),
    }
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    with podman.created(image, "--network=host", *HARDENED, *flags, *variables) as name:
        yield Container(podman, name, grpc_port, metrics_port)


@contextmanager
def serving(podman: Podman, image: str, *flags: str, **environment: str) -> Iterator[Container]:
    """Starts the service as `starting` does, and waits until it is ready."""
    with starting(podman, image, *flags, **environment) as container:
        container.wait_until_ready()
        yield container
