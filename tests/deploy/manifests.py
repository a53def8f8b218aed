"""The Kubernetes manifests, rendered as `kubectl apply -k` would, without a cluster."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tracked import tracked_files

Manifest = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "deploy"
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


def render(directory: str) -> list[Manifest]:
    """The objects of a directory of deploy/kubernetes. Raises ValueError with what kustomize says of it."""
    kubectl = Path(sys.executable).with_name("kubectl")
    rendered = subprocess.run(
        [kubectl, "kustomize", KUBERNETES / directory], capture_output=True, text=True, timeout=60, check=False
    )
    if rendered.returncode:
        raise ValueError(rendered.stderr)
    return [manifest for manifest in yaml.safe_load_all(rendered.stdout) if manifest]


def of_kind(manifests: list[Manifest], *kinds: str) -> Iterator[Manifest]:
    """The objects of some kinds."""
    return (manifest for manifest in manifests if manifest["kind"] in kinds)


def name(manifest: Manifest) -> str:
    """What a report calls an object."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def pod_of(workload: Manifest) -> Manifest:
    """The specification of its pods."""
    spec: Manifest = workload["spec"]
    return spec if workload["kind"] == "ServingRuntime" else spec["template"]["spec"]


def labels_of(workload: Manifest) -> dict[str, str]:
    """Of its pods; those of a ServingRuntime are KServe's to choose."""
    template = workload["spec"].get("template", {})
    labels: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return labels


def containers(pod: Manifest) -> list[Manifest]:
    """All that run in a pod, at first or in the end."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def servers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each workload that runs our service, and its container."""
    for workload in of_kind(manifests, *WORKLOADS):
        for container in pod_of(workload)["containers"]:
            if "postal-digits" in container["image"]:
                yield workload, container


def declared_ports(container: Manifest) -> set[str | int]:
    """The ports of a container, by name and by number."""
    return {port[key] for port in container.get("ports", ()) for key in ("name", "containerPort") if key in port}


def probes_of(container: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The probes of a container, with what each is called."""
    return ((kind, container[kind]) for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container)


def environment(container: Manifest, manifests: list[Manifest]) -> dict[str, str]:
    """What a container finds in its environment, as far as the manifests say it."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        reference = source.get("configMapRef", {}).get("name")
        for config in of_kind(manifests, "ConfigMap"):
            if config["metadata"]["name"] == reference:
                found |= config.get("data", {})
    return found | {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}


def quantity(text: str | float) -> float:
    """A quantity of Kubernetes', in cores or bytes. Source: Kubernetes, apimachinery, Quantity."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    said = str(text)
    unit = said.lstrip("0123456789.")
    return float(said.removesuffix(unit)) * (units[unit] if unit else 1)
