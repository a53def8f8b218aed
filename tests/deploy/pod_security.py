"""Checks pods against Pod Security "restricted", which the namespaces enforce, and for a read-only root.

Source: Kubernetes, Pod Security Standards, profiles Baseline and Restricted, of Linux pods.
"""

from collections.abc import Iterator

from tests.deploy.manifests import Manifest, containers

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_SECCOMP = {"RuntimeDefault", "Localhost"}
_ADDABLE = {"NET_BIND_SERVICE"}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
}


def violations(pod: Manifest) -> Iterator[str]:
    """Yields the violations of a pod's specification."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is set"
    for volume in pod.get("volumes", ()):
        for kind in set(volume) - {"name"} - _VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
    pod_context = pod.get("securityContext", {})
    for sysctl in pod_context.get("sysctls", ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctl {sysctl['name']} is set"
    for container in containers(pod):
        for violation in _container_violations(container, pod_context):
            yield f"container {container['name']}: {violation}"


def _container_violations(container: Manifest, pod_context: Manifest) -> Iterator[str]:
    own = container.get("securityContext", {})

    def effective(field: str) -> object:
        return own.get(field, pod_context.get(field))

    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if effective("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if effective("runAsUser") == 0:
        yield "runAsUser is 0"
    seccomp = effective("seccompProfile")
    if not isinstance(seccomp, dict) or seccomp.get("type") not in _SECCOMP:
        yield "no seccompProfile RuntimeDefault"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield "not all capabilities are dropped"
    for capability in set(capabilities.get("add", ())) - _ADDABLE:
        yield f"capability {capability} is added"
    if own.get("procMount", "Default") != "Default":
        yield f"procMount is {own['procMount']}"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root file system is writable"
    for port in container.get("ports", ()):
        if "hostPort" in port:
            yield f"port {port['containerPort']} is bound to the host"
