"""Starts Envoy in front of replicas of the service."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.envoy import PLAIN, Envoy, Ports, envoy, program
from tests.deploy.load import until
from tests.deploy.names import Names, name_server
from tests.deploy.replicas import Replica, replica


@dataclass(frozen=True)
class EnvoyProxy:
    """Envoy in front of replicas of the service.

    Attributes:
        envoy: the proxy.
        names: the DNS server through which Envoy finds the replicas.
        replicas: the services.
    """

    envoy: Envoy
    names: Names
    replicas: list[Replica]

    @property
    def ports(self) -> Ports:
        return self.envoy.ports

    def answered(self) -> list[int]:
        """Returns the answered calls of each replica."""
        return [one.answered() for one in self.replicas]


@contextmanager
def envoy_proxy(
    directory: Path, *flags: str, variant: str = PLAIN, certificates: Path | None = None, count: int = 2
) -> Iterator[EnvoyProxy]:
    """Starts Envoy and `count` replicas with these flags, and waits until Envoy uses all of them."""
    program()
    ports = Ports.free()
    with ExitStack() as stack:
        made = [replica(f"127.0.0.{2 + n}", ports.replica_grpc, ports.replica_metrics, *flags) for n in range(count)]
        with ThreadPoolExecutor(count) as pool:
            replicas = [*pool.map(stack.enter_context, made)]
        names = stack.enter_context(name_server(*(one.address for one in replicas)))
        started = stack.enter_context(envoy(variant, directory, ports, names.port, certificates))
        until(lambda: started.replicas() == {one.address: True for one in replicas})
        yield EnvoyProxy(started, names, replicas)
