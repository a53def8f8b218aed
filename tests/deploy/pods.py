"""Rules about the pods of each workload, and about the service in them: settings, cores, probes, shutdown."""

import re
from collections.abc import Iterator

from pydantic import ValidationError

from deploy.quantity import parse_quantity
from serving.api.digits import NAME as DIGIT_SERVICE
from serving.api.open_inference import NAME as OPEN_INFERENCE
from serving.process import worker_process
from serving.settings import Settings
from tests.deploy import pod_security
from tests.deploy.manifests import (
    WORKLOADS,
    Manifest,
    containers,
    declared_ports,
    environment,
    name,
    of_kind,
    pod_of,
    probes_of,
    servers,
)

Findings = Iterator[str]

_PORTS = {"grpc": Settings.model_fields["grpc_port"].default, "metrics": Settings.model_fields["metrics_port"].default}

ENDING_SECONDS = worker_process.EXIT_SECONDS + 2
"""Time of a server to end beyond drain and grace, if workers must be killed."""

_HTTP_PATHS = {"/healthz", "/readyz"}
_PREFIX = str(Settings.model_config["env_prefix"])


def service_ports(manifests: list[Manifest]) -> Findings:
    """Requires that the container declares the ports that the service listens on."""
    for workload, container in servers(manifests):
        variables = environment(container, manifests)
        for port, number in _PORTS.items():
            listens = int(variables.get(f"{_PREFIX}{port.upper()}_PORT", number))
            if listens not in declared_ports(container):
                yield f"{name(workload)}: the service listens on {listens}, which its container does not declare"


def stopping(manifests: list[Manifest]) -> Findings:
    """Requires time for the whole drain before a pod is killed."""
    for workload in of_kind(manifests, *WORKLOADS):
        pod = pod_of(workload)
        grace = pod.get("terminationGracePeriodSeconds", 30)
        for container in pod["containers"]:
            before = _pre_stop(container)
            if not before:
                yield f"{name(workload)}: {container['name']} stops while balancers still know it: it has no preStop"
            if grace <= before:
                yield f"{name(workload)}: {container['name']} is killed during preStop"
    for workload, container in servers(manifests):
        variables = environment(container, manifests)
        seconds = [
            float(variables.get(f"{_PREFIX}{setting.upper()}", Settings.model_fields[setting].default))
            for setting in ("drain_seconds", "grace_seconds")
        ]
        pod = pod_of(workload)
        needed = _pre_stop(container) + sum(seconds) + ENDING_SECONDS
        if pod.get("terminationGracePeriodSeconds", 30) < needed:
            yield f"{name(workload)} is killed after {pod['terminationGracePeriodSeconds']} s, but may need {needed:g} s"


def _pre_stop(container: Manifest) -> float:
    """Returns the seconds that a container sleeps in preStop."""
    hook = container.get("lifecycle", {}).get("preStop", {})
    slept = re.findall(r"\bsleep (\d+)", " ".join(hook.get("exec", {}).get("command", ())))
    return float(hook.get("sleep", {}).get("seconds", 0)) + sum(map(float, slept))


def resources(manifests: list[Manifest]) -> Findings:
    """Requires requests and limits, whole cores, and enough of them for the service's workers and runs."""
    for workload in of_kind(manifests, *WORKLOADS):
        for container in containers(pod_of(workload)):
            owner = f"{name(workload)}: {container['name']}"
            requests, limits = (container.get("resources", {}).get(kind, {}) for kind in ("requests", "limits"))
            for resource in ("cpu", "memory"):
                if resource not in requests or resource not in limits:
                    yield f"{owner} has no request or no limit for {resource}"
                elif parse_quantity(requests[resource]) > parse_quantity(limits[resource]):
                    yield f"{owner} requests more {resource} than its limit"
    for workload, container in servers(manifests):
        variables = environment(container, manifests)
        limits = container.get("resources", {}).get("limits", {})
        cores = parse_quantity(limits.get("cpu", 0))
        if cores != int(cores) or parse_quantity(container.get("resources", {}).get("requests", {}).get("cpu", 0)) != cores:
            yield f"{name(workload)}: its cores are fractional, or its CPU request is below the limit"
        for setting in ("workers", "instances"):
            if int(variables.get(f"{_PREFIX}{setting.upper()}", 1)) > max(1, cores):
                yield f"{name(workload)}: it has more {setting} than cores"
        if (variables.get(f"{_PREFIX}PROVIDER") == "cuda") != ("nvidia.com/gpu" in limits):
            yield f"{name(workload)}: provider {variables.get(f'{_PREFIX}PROVIDER', 'cpu')} with {limits}"


def probes(manifests: list[Manifest]) -> Findings:
    """Requires all three probes, on paths that the service serves, so that load alone fails none."""
    for workload in of_kind(manifests, *WORKLOADS):
        for container in pod_of(workload)["containers"]:
            for kind in {"startupProbe", "readinessProbe", "livenessProbe"} - {kind for kind, _ in probes_of(container)}:
                yield f"{name(workload)}: {container['name']} has no {kind}"
    for workload, container in servers(manifests):
        tls = f"{_PREFIX}TLS_CERTIFICATE" in environment(container, manifests)
        for kind, probe in probes_of(container):
            where = f"{name(workload)}: {kind}"
            if "grpc" in probe:
                if kind != "startupProbe":
                    yield f"{where} uses gRPC, which reaches a single worker, behind its calls"
                if tls:
                    yield f"{where} uses gRPC without TLS"
                if probe["grpc"].get("service") not in (DIGIT_SERVICE, OPEN_INFERENCE):
                    yield f"{where} checks {probe['grpc'].get('service')!r}, which is not the service's readiness"
            elif probe.get("httpGet", {}).get("path") not in _HTTP_PATHS:
                yield f"{where} requests {probe.get('httpGet', {}).get('path')}"
            elif (kind == "livenessProbe") != (probe["httpGet"]["path"] == "/healthz"):
                yield f"{where} requests {probe['httpGet']['path']}"


def images(manifests: list[Manifest]) -> Findings:
    """Requires images that do not change under their name."""
    for workload in of_kind(manifests, *WORKLOADS):
        for container in containers(pod_of(workload)):
            image = container["image"].rpartition("/")[2]
            if "@sha256:" not in image and image.partition(":")[2] in ("", "latest"):
                yield f"{name(workload)}: image {container['image']} is not pinned"
            if container.get("imagePullPolicy", "IfNotPresent") == "Never":
                yield f"{name(workload)}: image {container['image']} is never pulled"


def pod_standards(manifests: list[Manifest]) -> Findings:
    """Requires Pod Security restricted."""
    for workload in of_kind(manifests, *WORKLOADS):
        for violation in pod_security.violations(pod_of(workload)):
            yield f"{name(workload)}: {violation}"


def settings(manifests: list[Manifest]) -> Findings:
    """Requires settings that the service knows and accepts."""
    known = {f"{_PREFIX}{setting.upper()}": setting for setting in Settings.model_fields}
    used = {
        source.get("configMapRef", {}).get("name")
        for _, container in servers(manifests)
        for source in container.get("envFrom", ())
    }
    for config in of_kind(manifests, "ConfigMap"):
        if not config["metadata"]["name"].startswith("digits-settings"):
            continue
        if config["metadata"]["name"] not in used:
            yield f"{name(config)} is used by no pod"
        for variable in config["data"]:
            if not variable.startswith(_PREFIX):
                yield f"{name(config)}: {variable} does not begin with {_PREFIX}"
    for workload, container in servers(manifests):
        variables = environment(container, manifests)
        for variable in sorted(set(variables) - set(known)):
            if variable.startswith(_PREFIX):
                yield f"{name(workload)}: {variable} is not a setting"
        given = {known[variable]: value for variable, value in variables.items() if variable in known}
        try:
            audited = Settings.model_validate(given).audit_rate > 0
        except ValidationError as error:
            yield from (f"{name(workload)}: {one['loc']}: {one['msg']}" for one in error.errors())
            continue
        if given.get("host", "127.0.0.1") == "127.0.0.1":
            yield f"{name(workload)}: it accepts no calls from outside its pod"
        if audited and "recognition_key" not in given:
            yield f"{name(workload)}: any caller can invent truth about its audits: recognition_key is not set"
        pod = pod_of(workload)
        secret = {volume["name"] for volume in pod.get("volumes", ()) if "secret" in volume}
        mounts = [mount["mountPath"] for mount in container.get("volumeMounts", ()) if mount["name"] in secret]
        for setting in ("tls_certificate", "tls_key", "tls_client_ca", "tokens", "recognition_key"):
            if setting in given and not any(given[setting].startswith(f"{mount}/") for mount in mounts):
                yield f"{name(workload)}: {setting} {given[setting]} is not in a mounted Secret"
