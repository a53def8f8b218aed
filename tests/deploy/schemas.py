"""Validates manifests against Kubernetes' own schemas, and against strict schemas for the custom resources in use."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.deploy.manifests import Manifest, name

VERSIONS = ("1.33", "1.37")
"""Versions of Kubernetes: the oldest supported, and the newest with published schemas."""

BUILT_IN = {
    ("apps/v1", "Deployment"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    *(("v1", kind) for kind in ("ConfigMap", "Namespace", "Service", "ServiceAccount")),
}
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"),
    ("serving.kserve.io/v1beta1", "InferenceService"),
}
"""Kinds that a set may have. Any other is taken for a typing error, of which a schema validator would only warn."""

_OURS = Path(__file__).parent / "schemas"


def violations(manifests: list[Manifest], version: str) -> Iterator[str]:
    """Yields fields that Kubernetes of this version would refuse or silently drop."""
    for manifest in manifests:
        identity = manifest.get("apiVersion", ""), manifest.get("kind", "")
        if identity not in BUILT_IN | CUSTOM:
            yield f"{name(manifest)}: objects of {identity[0]} are not expected here"
            continue
        for error in _validator(version, *identity).iter_errors(manifest):
            path = ".".join(map(str, error.absolute_path))
            yield f"{name(manifest)}: {path}: {error.message[:200]}"


@functools.cache
def _validator(version: str, api_version: str, kind: str) -> Any:
    if (api_version, kind) in CUSTOM:
        schema = json.loads((_OURS / f"{kind.lower()}.json").read_text())
        return jsonschema.Draft202012Validator(schema, registry=_definitions(version))
    group, _, number = api_version.rpartition("/")
    file = "-".join(filter(None, (kind.lower(), group.split(".")[0], number)))
    schema = _kubernetes(version, file)
    resource = Resource.from_contents(schema)
    return jsonschema.Draft202012Validator(schema, registry=resource @ _definitions(version))


@functools.cache
def _definitions(version: str) -> "Registry[Any]":
    return Resource.from_contents(_kubernetes(version, "_definitions")) @ Registry()


def _kubernetes(version: str, file: str) -> Any:
    return schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/{file}.json", version)
