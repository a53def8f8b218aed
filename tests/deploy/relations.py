"""Rules about the relations of objects: selectors, ports, references, autoscalers, budgets, and Envoy's clusters."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from serving.settings import Settings
from tests.deploy import series
from tests.deploy.manifests import (
    KUBERNETES,
    WORKLOADS,
    Manifest,
    containers,
    declared_ports,
    environment,
    labels_of,
    name,
    of_kind,
    pod_of,
    probes_of,
    servers,
)

Findings = Iterator[str]

EXTERNAL_SECRETS = {"digits-recognition-key", "digits-tls"}
"""Secrets from outside the manifests: from cert-manager, or from the cluster's operators."""

_ADAPTER = KUBERNETES / "components" / "hpa" / "prometheus-adapter.yaml"
_TLS = f"{Settings.model_config['env_prefix']}TLS_CERTIFICATE"
_READINESS_PORT = Settings.model_fields["metrics_port"].default


def one_of_each(manifests: list[Manifest]) -> Findings:
    """Requires unique objects in one namespace, which enforces Pod Security if the manifests create it."""
    for identity, count in Counter(map(name, manifests)).items():
        if count > 1:
            yield f"{identity} exists {count} times"
    namespaces = {one["metadata"].get("namespace") for one in manifests if one["kind"] != "Namespace"}
    if len(namespaces) > 1:
        yield f"objects are spread over the namespaces {namespaces}"
    for namespace in of_kind(manifests, "Namespace"):
        if namespace["metadata"]["name"] not in namespaces:
            yield f"{name(namespace)} is not the namespace of the objects: {namespaces}"
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name(namespace)} does not enforce Pod Security restricted"


def selectors(manifests: list[Manifest]) -> Findings:
    """Requires that every selector of pods selects exactly one workload."""
    for workload in of_kind(manifests, "Deployment"):
        if not _matches(workload["spec"]["selector"], labels_of(workload)):
            yield f"{name(workload)} does not select its own pods"
        for spread in pod_of(workload).get("topologySpreadConstraints", ()):
            if not _matches(spread["labelSelector"], labels_of(workload)):
                yield f"{name(workload)} spreads pods of another workload over {spread['topologyKey']}"
        if not pod_of(workload).get("topologySpreadConstraints"):
            yield f"{name(workload)} is not spread over nodes and zones"
    for one in of_kind(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        spec = one["spec"]
        selector = (
            {"matchLabels": spec["selector"]} if one["kind"] == "Service" else spec.get("selector") or spec["podSelector"]
        )
        found = _selected(selector, manifests)
        if len(found) != 1:
            yield f"{name(one)} selects the pods of {[name(workload) for workload in found] or 'nothing'}"


def guards(manifests: list[Manifest]) -> Findings:
    """Requires a PodDisruptionBudget and a NetworkPolicy for each workload."""
    for workload in of_kind(manifests, "Deployment"):
        for kind in ("PodDisruptionBudget", "NetworkPolicy"):
            selectors = [one["spec"].get("selector") or one["spec"]["podSelector"] for one in of_kind(manifests, kind)]
            if not any(_matches(selector, labels_of(workload)) for selector in selectors):
                yield f"{name(workload)} has no {kind}"


def ports(manifests: list[Manifest]) -> Findings:
    """Requires that every reference to a port of a pod names a declared port."""
    for service in of_kind(manifests, "Service"):
        for workload in _selected({"matchLabels": service["spec"]["selector"]}, manifests):
            for port in service["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in _all_declared(workload):
                    yield f"{name(service)} leads to port {port.get('targetPort')}, which {name(workload)} does not declare"
    for monitor in of_kind(manifests, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for workload in _selected(monitor["spec"]["selector"], manifests):
                if endpoint["port"] not in _all_declared(workload):
                    yield f"{name(monitor)} scrapes port {endpoint['port']}, which {name(workload)} does not declare"
    for workload in of_kind(manifests, *WORKLOADS):
        for container in containers(pod_of(workload)):
            names = [port["name"] for port in container.get("ports", ())]
            if len(names) != len(set(names)):
                yield f"{name(workload)}: container {container['name']} has two ports with one name"
            for kind, probe in probes_of(container):
                for protocol in ("httpGet", "grpc", "tcpSocket"):
                    if protocol in probe and probe[protocol]["port"] not in declared_ports(container):
                        yield f"{name(workload)}: {kind} uses port {probe[protocol]['port']}, which is not declared"


def network_policies(manifests: list[Manifest]) -> Findings:
    """Requires policies that allow calls, scrapes and DNS, on declared ports only."""
    for policy in of_kind(manifests, "NetworkPolicy"):
        spec = policy["spec"]
        ingress = {port["port"] for rule in spec.get("ingress", ()) for port in rule.get("ports", ())}
        for workload in _selected(spec["podSelector"], manifests):
            for port in ingress - _all_declared(workload):
                yield f"{name(policy)} allows calls to port {port}, which {name(workload)} does not declare"
            for container in containers(pod_of(workload)):
                for port in container.get("ports", ()):
                    if not {port.get("name"), port["containerPort"]} & ingress:
                        yield f"{name(policy)} allows nothing to port {port.get('name')} of {name(workload)}"
        for rule in spec.get("ingress", ()):
            if not rule.get("from"):
                yield f"{name(policy)} allows every source"
        outgoing = [port.get("port") for rule in spec.get("egress", ()) for port in rule.get("ports", ())]
        if "Egress" in spec.get("policyTypes", ()) and 53 not in outgoing:
            yield f"{name(policy)} forbids DNS"


def references(manifests: list[Manifest]) -> Findings:
    """Requires that every object and volume that a pod refers to exists."""
    existing = {
        kind: {one["metadata"]["name"] for one in of_kind(manifests, kind)} for kind in ("ConfigMap", "ServiceAccount")
    }
    existing["Secret"] = EXTERNAL_SECRETS
    for workload in of_kind(manifests, *WORKLOADS):
        pod = pod_of(workload)
        wanted = [("ServiceAccount", pod["serviceAccountName"])] if "serviceAccountName" in pod else []
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                wanted.append(("ConfigMap", volume["configMap"]["name"]))
            if "secret" in volume:
                wanted.append(("Secret", volume["secret"]["secretName"]))
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        mounted = set()
        for container in containers(pod):
            for source in container.get("envFrom", ()):
                wanted += [("ConfigMap", source["configMapRef"]["name"])] if "configMapRef" in source else []
                wanted += [("Secret", source["secretRef"]["name"])] if "secretRef" in source else []
            for mount in container.get("volumeMounts", ()):
                mounted.add(mount["name"])
                if mount["name"] not in volumes:
                    yield f"{name(workload)}: {container['name']} mounts {mount['name']}, which is not a volume of its pod"
        for volume in volumes - mounted:
            yield f"{name(workload)}: no container mounts volume {volume}"
        for kind, called in wanted:
            if called not in existing[kind]:
                yield f"{name(workload)} refers to {kind} {called}, which does not exist"
        if workload["kind"] == "Deployment" and pod.get("automountServiceAccountToken") is not False:
            yield f"{name(workload)} mounts a token for the API server, which it does not need"


def autoscaling(manifests: list[Manifest]) -> Findings:
    """Requires at most one autoscaler for a workload, existing metrics, and no fixed number of replicas beside it."""
    scaled: list[str] = []
    known = series.metric_names()
    adapted = {rule["name"]["as"] for rule in yaml.safe_load(_ADAPTER.read_text())["rules"]["custom"]}
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        target = f"{spec['scaleTargetRef'].get('kind', 'Deployment')} {spec['scaleTargetRef']['name']}"
        scaled.append(target)
        workloads = [workload for workload in of_kind(manifests, *WORKLOADS) if name(workload) == target]
        if not workloads:
            yield f"{name(scaler)} scales {target}, which does not exist"
        for workload in workloads:
            if "replicas" in workload["spec"]:
                yield f"{target} sets replicas, which {name(scaler)} should set"
        least, most = (spec.get(f"{end}Replicas", spec.get(f"{end}ReplicaCount", 1)) for end in ("min", "max"))
        if not 2 <= least < most:
            yield f"{name(scaler)} scales from {least} to {most} pods"
        for metric in spec.get("metrics", ()):
            if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in adapted:
                yield f"{name(scaler)} scales by {metric['pods']['metric']['name']}, which the adapter does not provide"
        for trigger in spec.get("triggers", ()):
            query = trigger["metadata"].get("query", "")
            for metric_name in set(re.findall(r"\bdigits_\w+", query)) - known:
                yield f"{name(scaler)} scales by {metric_name}, which the service does not have"
            if query and f'namespace="{scaler["metadata"]["namespace"]}"' not in query:
                yield f"{name(scaler)} scales by pods of other namespaces too"
    for target, count in Counter(scaled).items():
        if count > 1:
            yield f"{target} is scaled by {count} autoscalers"


def disruption(manifests: list[Manifest]) -> Findings:
    """Requires that nodes can be drained, and that a rollout never lowers the capacity."""
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        spec = budget["spec"]
        if str(spec.get("maxUnavailable", "1")).rstrip("%") == "0" or "minAvailable" in spec:
            yield f"{name(budget)} may block node drains"
    for workload in of_kind(manifests, "Deployment"):
        rolling = workload["spec"].get("strategy", {}).get("rollingUpdate", {})
        if str(rolling.get("maxUnavailable", "25%")).rstrip("%") != "0":
            yield f"{name(workload)} removes pods before new ones are ready"


def envoy(manifests: list[Manifest]) -> Findings:
    """Requires that Envoy calls a headless Service, with the right TLS, and checks readiness on the metrics port."""
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(manifests, "Service")}
    secured = any(_TLS in environment(container, manifests) for _, container in servers(manifests))
    for config in of_kind(manifests, "ConfigMap"):
        for content in config.get("data", {}).values():
            bootstrap = yaml.safe_load(content) if "static_resources" in content else {}
            for cluster in bootstrap.get("static_resources", {}).get("clusters", ()):
                for endpoint in _endpoints(cluster):
                    address = endpoint["endpoint"]["address"]["socket_address"]
                    if address["address"] == "127.0.0.1":  # its own admin interface
                        continue
                    service = services.get(address["address"].partition(".")[0])
                    if service is None:
                        yield f"{name(config)}: {cluster['name']} calls {address['address']}, which is no Service of the set"
                    elif service.get("clusterIP") != "None":
                        yield f"{name(config)}: {address['address']} is one address, but Envoy needs each pod's address"
                    elif ("transport_socket" in cluster or "transport_socket_matches" in cluster) != secured:
                        yield f"{name(config)}: it calls {address['address']} {'without' if secured else 'with'} TLS"
                    elif address["port_value"] not in {port["port"] for port in service["ports"]}:
                        yield f"{name(config)}: {address['address']} has no port {address['port_value']}"
                    port = endpoint["endpoint"].get("health_check_config", {}).get("port_value", address["port_value"])
                    if cluster.get("health_checks") and port != _READINESS_PORT:
                        yield f"{name(config)}: it checks readiness on port {port}"


def _endpoints(cluster: Manifest) -> Iterator[Manifest]:
    groups = cluster.get("load_assignment", {}).get("endpoints", ())
    return itertools.chain.from_iterable(group["lb_endpoints"] for group in groups)


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and wanted.items() <= labels.items()


def _selected(selector: Mapping[str, Any], manifests: list[Manifest]) -> list[Manifest]:
    """Returns the workloads whose pods a selector selects."""
    return [workload for workload in of_kind(manifests, *WORKLOADS) if _matches(selector, labels_of(workload))]


def _all_declared(workload: Manifest) -> set[str | int]:
    return set().union(*(declared_ports(container) for container in containers(pod_of(workload))))
