"""Podman with a configuration and a storage of its own: no daemon, no registry, nothing of the machine's configuration."""

import itertools
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 60


class PodmanError(Exception):
    """A command of podman failed. The message contains its error output."""


class Podman:
    """Runs podman commands."""

    def __init__(self, directory: Path):
        """Writes the configuration into `directory`, which also holds images and containers."""
        self._directory = directory
        self._numbers = itertools.count()
        directory.mkdir(parents=True, exist_ok=True)
        files = {
            "CONTAINERS_CONF": _containers_conf(directory),
            "CONTAINERS_STORAGE_CONF": _storage_conf(directory),
            "CONTAINERS_REGISTRIES_CONF": "unqualified-search-registries = []\n",
        }
        # The tests run health checks. A timer of systemd, which podman would use, may not exist.
        self._environment = {**os.environ, "DISABLE_HC_SYSTEMD": "true"}
        for name, content in files.items():
            file = directory / f"{name.lower()}.toml"
            file.write_text(content)
            self._environment[name] = str(file)

    def __call__(self, *arguments: str | Path, timeout: float = TIMEOUT_SECONDS) -> str:
        """Runs a command and returns its output.

        Raises:
            PodmanError: the command failed.
        """
        finished = self.attempt(*arguments, timeout=timeout)
        if finished.returncode:
            raise PodmanError(f"podman {arguments[0]} exited with {finished.returncode}: {finished.stderr.strip()}")
        return finished.stdout

    def attempt(self, *arguments: str | Path, timeout: float = TIMEOUT_SECONDS) -> "subprocess.CompletedProcess[str]":
        """Runs a command that may fail."""
        command = ["podman", *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=self._directory,  # where conmon leaves a file called oom
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """Returns podman's description of a container or an image."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    def clear(self) -> None:
        """Removes all containers, including the ones of interrupted builds, which would keep their mounts."""
        for container in self("ps", "--all", "--external", "--quiet").split():
            self.attempt("rm", "--force", "--time", "0", container)

    @contextmanager
    def created(self, image: str, *flags: str, command: tuple[str, ...] = ()) -> Iterator[str]:
        """Runs a container in the background, yields its name, and removes it at the end."""
        name = f"digits-{os.getpid()}-{next(self._numbers)}"
        try:
            self("run", "--detach", "--name", name, *flags, image, *command)
            yield name
        finally:
            self.attempt("rm", "--force", "--time", "0", "--volumes", "--ignore", name)


def _containers_conf(directory: Path) -> str:
    """Returns containers.conf(5). Root without CAP_SYS_RESOURCE can't raise limits, which podman does by default."""
    wanted = ((resource.RLIMIT_NOFILE, "nofile", 20_000), (resource.RLIMIT_NPROC, "nproc", 4096))
    limits = {name: (resource.getrlimit(limit)[1], enough) for limit, name, enough in wanted}
    capped = {
        name: enough if hard == resource.RLIM_INFINITY else min(hard, enough) for name, (hard, enough) in limits.items()
    }
    ulimits = [f"{name}={limit}:{limit}" for name, limit in capped.items()]
    return f"""\
[containers]
default_ulimits = {json.dumps(ulimits)}
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{directory}/state"
volume_path = "{directory}/volumes"
[network]
network_config_dir = "{directory}/networks"
"""


def _storage_conf(directory: Path) -> str:
    """Returns containers-storage.conf(5). Without skip_mount_home a mount would outlive the tests."""
    return f"""\
[storage]
driver = "overlay"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
[storage.options.overlay]
skip_mount_home = "true"
"""
