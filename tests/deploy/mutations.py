"""Typical mistakes in manifests, each applied to a correct set, to test the rules.

A cluster accepts each mistake silently, or fails later: at night, during a rollout, or when a node is drained.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from tests.deploy.manifests import Manifest, of_kind

Mutation = Callable[[list[Manifest]], object]


def mutated(manifests: list[Manifest], mutation: Mutation) -> list[Manifest]:
    """Returns a copy of a set with one mistake."""
    copied = copy.deepcopy(manifests)
    mutation(copied)
    return copied


def _one(manifests: list[Manifest], kind: str, name: str = "digits") -> Manifest:
    return next(one for one in of_kind(manifests, kind) if one["metadata"]["name"] == name)


def _pod(manifests: list[Manifest]) -> Any:
    return _one(manifests, "Deployment")["spec"]["template"]["spec"]


def _container(manifests: list[Manifest]) -> Any:
    return _pod(manifests)["containers"][0]


def _settings(manifests: list[Manifest]) -> Any:
    return next(one for one in of_kind(manifests, "ConfigMap") if "DIGITS_HOST" in one["data"])["data"]


def _envoy(manifests: list[Manifest]) -> Iterator[tuple[Any, str]]:
    """Yields the data of each ConfigMap with a configuration of Envoy, and the key of the configuration."""
    for config in of_kind(manifests, "ConfigMap"):
        for key, content in config["data"].items():
            if "static_resources" in content:
                yield config["data"], key


def _replace_in_envoy(manifests: list[Manifest], old: str, new: str) -> None:
    for data, key in _envoy(manifests):
        assert old in data[key], f"Envoy's configuration has no {old}"
        data[key] = data[key].replace(old, new)


MUTATIONS: dict[str, Mutation] = {
    "a Service that selects nothing": lambda all_: _one(all_, "Service")["spec"]["selector"].update(
        {"app.kubernetes.io/component": "servers"}
    ),
    "a Service that selects Envoy's pods as well": lambda all_: _one(all_, "Service")["spec"]["selector"].pop(
        "app.kubernetes.io/component"
    ),
    "a Service to a port that the pods do not declare": lambda all_: _one(all_, "Service")["spec"]["ports"][0].update(
        targetPort="rpc"
    ),
    "a Deployment whose selector is not its pods' labels": lambda all_: _one(all_, "Deployment")["spec"]["selector"][
        "matchLabels"
    ].update({"app.kubernetes.io/component": "service"}),
    "a PodMonitor of an unknown port": lambda all_: _one(all_, "PodMonitor")["spec"]["podMetricsEndpoints"][0].update(
        port="http"
    ),
    "a PodMonitor with a field misspelt": lambda all_: _one(all_, "PodMonitor")["spec"]["podMetricsEndpoints"][0].update(
        intervall="15s"
    ),
    "a container on another port than the service": lambda all_: _container(all_)["ports"][0].update(containerPort=9001),
    "a port set in the ConfigMap alone": lambda all_: _settings(all_).update(DIGITS_METRICS_PORT="9002"),
    "a setting misspelt": lambda all_: _settings(all_).update(DIGITS_DRAIN_SECOND="5"),
    "a setting out of range": lambda all_: _settings(all_).update(DIGITS_AUDIT_RATE="1%"),
    "a service that listens inside its pod only": lambda all_: _settings(all_).pop("DIGITS_HOST"),
    "a ConfigMap that does not exist": lambda all_: _container(all_)["envFrom"][0]["configMapRef"].update(
        name="digits-settings"
    ),
    "a mounted volume that does not exist": lambda all_: _pod(all_)["volumes"].pop(),
    "a certificate outside the mounted Secret": lambda all_: _settings(all_).update(DIGITS_TLS_KEY="/etc/tls/tls.key"),
    "audits without a key, so that callers can invent truth": lambda all_: _settings(all_).pop("DIGITS_RECOGNITION_KEY"),
    "a liveness probe by gRPC": lambda all_: _container(all_).update(
        livenessProbe={"grpc": {"port": 8001, "service": "digits.v1.DigitService"}}
    ),
    "a liveness probe of readiness": lambda all_: _container(all_)["livenessProbe"]["httpGet"].update(path="/readyz"),
    "no startup probe": lambda all_: _container(all_).pop("startupProbe"),
    "a grace period shorter than the drain": lambda all_: _pod(all_).update(terminationGracePeriodSeconds=15),
    "a drain longer than the grace period allows": lambda all_: _settings(all_).update(DIGITS_DRAIN_SECONDS="20"),
    "no preStop": lambda all_: _container(all_).pop("lifecycle"),
    "a memory request above the limit": lambda all_: _container(all_)["resources"]["requests"].update(memory="2Gi"),
    "half a core": lambda all_: _container(all_)["resources"]["limits"].update(cpu="2500m"),
    "more workers than cores": lambda all_: _settings(all_).update(DIGITS_WORKERS="8"),
    "replicas beside an autoscaler": lambda all_: _one(all_, "Deployment")["spec"].update(replicas=3),
    "an autoscaler of another workload": lambda all_: _one(all_, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(
        name="digit"
    ),
    "an autoscaler by an unknown metric": lambda all_: _one(all_, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"][
        "metric"
    ].update(name="digits_in_flight_requests"),
    "a budget that blocks node drains": lambda all_: _one(all_, "PodDisruptionBudget")["spec"].update(maxUnavailable=0),
    "no budget for disruptions": lambda all_: all_.remove(_one(all_, "PodDisruptionBudget")),
    "a rollout that removes pods first": lambda all_: _one(all_, "Deployment")["spec"]["strategy"]["rollingUpdate"].update(
        maxUnavailable=1
    ),
    "a NetworkPolicy that forbids scrapes": lambda all_: _one(all_, "NetworkPolicy")["spec"]["ingress"].pop(),
    "a NetworkPolicy that forbids DNS": lambda all_: _one(all_, "NetworkPolicy")["spec"].pop("egress"),
    "a container that runs as root": lambda all_: _pod(all_)["securityContext"].update(runAsUser=0, runAsNonRoot=False),
    "a writable root file system": lambda all_: _container(all_)["securityContext"].pop("readOnlyRootFilesystem"),
    "capabilities kept": lambda all_: _container(all_)["securityContext"].pop("capabilities"),
    "a volume of the host": lambda all_: _pod(all_)["volumes"][0].update(emptyDir=None, hostPath={"path": "/tmp"}),  # noqa: S108
    "an image that changes under its name": lambda all_: _container(all_).update(
        image="registry.example/postal-digits:latest"
    ),
    "an apiVersion that was removed": lambda all_: _one(all_, "PodDisruptionBudget").update(apiVersion="policy/v1beta1"),
    "a namespace without Pod Security": lambda all_: _one(all_, "Namespace")["metadata"].pop("labels"),
    "an object left in another namespace": lambda all_: _one(all_, "ServiceAccount")["metadata"].update(namespace="default"),
    "Envoy on the Service with one address": lambda all_: _replace_in_envoy(all_, "digits-headless", "digits"),
    "Envoy without TLS in front of pods with TLS": lambda all_: _replace_in_envoy(all_, "transport_socket", "metadata"),
    "Envoy that checks readiness on the port of the calls": lambda all_: _replace_in_envoy(
        all_, "health_check_config: {port_value: 8002}", "health_check_config: {port_value: 8001}"
    ),
}
