"""Renders the Kubernetes manifests as `kubectl apply -k` does, without a cluster, and reads their objects."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tracked import ROOT, tracked_files

Manifest = dict[str, Any]

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RENDERED = (
    *(
        str(file.parent.relative_to(KUBERNETES))
        for file in tracked_files("deploy/kubernetes/overlays")
        if file.name == "kustomization.yaml"
    ),
    "kserve",
)
"""Directories that kubectl can apply. An overlay of your own is checked too, once Git tracks it (`git add`)."""

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ServingRuntime")


def render(directory: str | Path) -> list[Manifest]:
    """Renders a directory into objects; a relative one is of deploy/kubernetes.

    Raises:
        ValueError: kustomize failed. The message is its error output.
    """
    kubectl = Path(sys.executable).with_name("kubectl")
    rendered = subprocess.run(
        [kubectl, "kustomize", KUBERNETES / directory], capture_output=True, text=True, timeout=60, check=False
    )
    if rendered.returncode:
        raise ValueError(rendered.stderr)
    return [manifest for manifest in yaml.safe_load_all(rendered.stdout) if manifest]


def of_kind(manifests: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    """Returns the objects of some kinds."""
    return (manifest for manifest in manifests if manifest["kind"] in kinds)


def name(manifest: Manifest) -> str:
    """Returns an object's name for a report, such as "Service digits"."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def pod_of(workload: Manifest) -> Manifest:
    """Returns the specification of a workload's pods."""
    spec: Manifest = workload["spec"]
    return spec if workload["kind"] == "ServingRuntime" else spec["template"]["spec"]


def labels_of(workload: Manifest) -> dict[str, str]:
    """Returns the labels of a workload's pods. A ServingRuntime has none, as KServe chooses them."""
    template = workload["spec"].get("template", {})
    labels: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return labels


def containers(pod: Manifest) -> list[Manifest]:
    """Returns all containers of a pod, including init containers."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def servers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Yields each workload that runs the service, with its container."""
    for workload in of_kind(manifests, *WORKLOADS):
        for container in pod_of(workload)["containers"]:
            if "postal-digits" in container["image"]:
                yield workload, container


def declared_ports(container: Manifest) -> set[str | int]:
    """Returns the names and the numbers of a container's ports."""
    return {port[key] for port in container.get("ports", ()) for key in ("name", "containerPort") if key in port}


def probes_of(container: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yields the probes of a container by name."""
    return ((kind, container[kind]) for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container)


def environment(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """Returns a container's environment, as far as the manifests set it."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        reference = source.get("configMapRef", {}).get("name")
        for config in of_kind(manifests, "ConfigMap"):
            if config["metadata"]["name"] == reference:
                found |= config.get("data", {})
    return found | {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}
