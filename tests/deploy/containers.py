"""Container images, built and run by podman with nothing of the machine's own: no daemon, no registry, no configuration.

What podman reads and writes is in build/containers, which `make clean` removes. Images stay there, so that a second run
builds only what has changed; containers are gone when a test ends. The base image is made of Debian's packages by mmdebstrap
and called as the official one, as no registry of images may be in reach; BASE_IMAGE names another, for podman to pull.
"""

import ast
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from tests.deploy.load import until
from tests.support.service import free_ports

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
BASE_IMAGE = "python:3.11-slim-bookworm"
"""What the Dockerfile builds on when it is not told otherwise."""

HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges")
"""As the manifests have it: a root that can't be written to, no capabilities, and no way to any."""

PATIENCE_SECONDS = 60

# A small Debian, about as large as the official image; `python` is where that one has it, too. The hook spares it the
# package usrmerge, which would bring all of Perl.
_BASE = ["mmdebstrap", "--variant=apt", "--include=ca-certificates,python3-venv", "--quiet"]
_BASE += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
_BASE += [f"--dpkgopt=path-exclude=/usr/share/{unread}/*" for unread in ("doc", "info", "locale", "man")]
_BASE += ['--customize-hook=ln --symbolic /usr/bin/python3 "$1/usr/local/bin/python"', "bookworm"]

# What of pip's configuration says where packages come from.
_SOURCES = ("cert", "client-cert", "extra-index-url", "find-links", "index-url", "no-index", "proxy", "trusted-host")


class PodmanError(Exception):
    """Podman did not do what it was asked to; the message is what it said."""


class Podman:
    """Podman with configuration and storage of its own."""

    def __init__(self, directory: Path):
        """Writes the configuration, and keeps everything, in that directory."""
        self._directory = directory
        self._numbers = itertools.count()
        directory.mkdir(parents=True, exist_ok=True)
        files = {
            "CONTAINERS_CONF": _containers_conf(directory),
            "CONTAINERS_STORAGE_CONF": _storage_conf(directory),
            "CONTAINERS_REGISTRIES_CONF": "unqualified-search-registries = []\n",
        }
        # Health checks are run by the tests, not by a timer of systemd's, which may not be there.
        self._environment = {**os.environ, "DISABLE_HC_SYSTEMD": "true"}
        for name, content in files.items():
            file = directory / f"{name.lower()}.toml"
            file.write_text(content)
            self._environment[name] = str(file)

    def __call__(self, *arguments: str | Path, timeout: float = PATIENCE_SECONDS) -> str:
        """What a command of podman's prints. Raises PodmanError when it fails."""
        ran = self.attempt(*arguments, timeout=timeout)
        if ran.returncode:
            raise PodmanError(f"podman {arguments[0]} ended with {ran.returncode}: {ran.stderr.strip()}")
        return ran.stdout

    def attempt(self, *arguments: str | Path, timeout: float = PATIENCE_SECONDS) -> "subprocess.CompletedProcess[str]":
        """A command of podman's, whatever comes of it."""
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
        """What there is to know of a container or an image."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    def clear(self) -> None:
        """Removes all containers, those too that a build works in, which keep their mounts when it is interrupted."""
        for container in self("ps", "--all", "--external", "--quiet").split():
            self.attempt("rm", "--force", "--time", "0", container)

    def make_base(self) -> None:
        """Makes a base image in the place of the official one, unless that was done before. Raises PodmanError."""
        if self.attempt("image", "exists", BASE_IMAGE).returncode == 0:
            return
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory) / "base.tar"
            command = [*_BASE, str(archive)]
            made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS * 5, check=False)
            if made.returncode:
                raise PodmanError(f"mmdebstrap: {made.stderr.strip() or made.returncode}")
            self("import", archive, BASE_IMAGE, timeout=PATIENCE_SECONDS * 5)

    def build(self, tag: str, **arguments: str) -> str:
        """The image of the Dockerfile as it is, under that name, with these build arguments. Raises PodmanError."""
        flags = [flag for name, value in arguments.items() for flag in ("--build-arg", f"{name}={value}")]
        # For pip, which is run in there: as out here, packages come from where this machine's pip has them from.
        configuration, paths = _pip_configuration()
        with tempfile.NamedTemporaryFile("w") as pip_conf:
            pip_conf.write(configuration)
            pip_conf.flush()
            mounts = {pip_conf.name: "/etc/pip.conf", **{str(path): str(path) for path in paths}}
            flags += [flag for path, there in mounts.items() for flag in ("--volume", f"{path}:{there}:ro")]
            command = ["build", "--format", "docker", "--network", "host", "--file", str(DOCKERFILE), "--tag", tag, *flags]
            self(*command, ROOT, timeout=PATIENCE_SECONDS * 10)
        return tag

    @contextmanager
    def created(self, image: str, *flags: str, command: tuple[str, ...] = ()) -> Iterator[str]:
        """The name of a container that is begun with these flags and removed in the end."""
        name = f"digits-{os.getpid()}-{next(self._numbers)}"
        try:
            self("run", "--detach", "--name", name, *flags, image, *command)
            yield name
        finally:
            self.attempt("rm", "--force", "--time", "0", "--volumes", "--ignore", name)

    @contextmanager
    def starting(self, image: str, *flags: str, **environment: str) -> Iterator["Container"]:
        """The service as it starts, hardened, on free ports of this machine alone; gone when the block ends."""
        grpc_port, metrics_port = free_ports(2)
        environment |= {
            "DIGITS_HOST": "127.0.0.1",
            "DIGITS_GRPC_PORT": str(grpc_port),
            "DIGITS_METRICS_PORT": str(metrics_port),
        }
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        with self.created(image, "--network=host", *HARDENED, *flags, *variables) as name:
            yield Container(self, name, grpc_port, metrics_port)

    @contextmanager
    def serving(self, image: str, *flags: str, **environment: str) -> Iterator["Container"]:
        """Likewise, when it answers."""
        with self.starting(image, *flags, **environment) as container:
            container.wait_until_ready()
            yield container


@dataclass(frozen=True)
class Container:
    """A container with the service in it.

    Attributes:
        podman: what runs it.
        name: what podman calls it.
        grpc_port: on 127.0.0.1.
        metrics_port: likewise.
    """

    podman: Podman
    name: str
    grpc_port: int
    metrics_port: int

    @property
    def address(self) -> str:
        """host:port for gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def log(self) -> str:
        """All that it has logged."""
        return self.podman.attempt("logs", self.name).stderr

    def event(self, name: str) -> dict[str, Any]:
        """The last event of that name in its log."""
        # ONNX Runtime writes to stderr, too, and not in JSON.
        events = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return dict([event for event in events if event["event"] == name][-1])

    def state(self) -> dict[str, Any]:
        """Podman's account of it."""
        return dict(self.podman.inspect(self.name)["State"])

    def execute(self, *command: str) -> str:
        """What a program prints that is run in it, as its own user. Raises PodmanError when that fails."""
        return self.podman("exec", self.name, *command)

    def status(self, process: int = 1) -> dict[str, str]:
        """What the kernel says of a process in it: its user, its capabilities. Source: proc(5), /proc/pid/status."""
        lines = self.execute("cat", f"/proc/{process}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def readiness(self) -> tuple[int, str]:
        """What /readyz answers: the HTTP status and the reason; status 0 while nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5) as page:
                return page.status, str(page.read(), "utf-8").strip()
        except HTTPError as refusal:
            with refusal:
                return refusal.code, str(refusal.read(), "utf-8").strip()
        except (URLError, ConnectionError, TimeoutError):
            return 0, ""

    def wait_until_ready(self) -> None:
        """Raises PodmanError, with the log, when it ends instead."""

        def ready() -> bool:
            if self.readiness()[0] == 200:
                return True
            if not self.state()["Running"]:
                raise PodmanError(f"{self.name} has ended: {self.log()}")
            return False

        until(ready)


def _containers_conf(directory: Path) -> str:
    """containers.conf(5). As root without CAP_SYS_RESOURCE, podman could not raise the limits as it does by default."""
    limits = ((resource.RLIMIT_NOFILE, "nofile", 20_000), (resource.RLIMIT_NPROC, "nproc", 4096))
    hard = {name: (resource.getrlimit(limit)[1], enough) for limit, name, enough in limits}
    capped = {name: enough if most == resource.RLIM_INFINITY else min(most, enough) for name, (most, enough) in hard.items()}
    ulimits = [f"{name}={most}:{most}" for name, most in capped.items()]
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
    """containers-storage.conf(5). Without skip_mount_home a mount would stay behind when the tests have ended."""
    return f"""\
[storage]
driver = "overlay"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
[storage.options.overlay]
skip_mount_home = "true"
"""


def _pip_configuration() -> tuple[str, set[Path]]:
    """This machine's configuration of pip, as far as it says where packages come from, and the local paths in it."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True).stdout
    settings: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment goes before files
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _SOURCES:
            settings[option] = str(ast.literal_eval(value))
    paths = set()
    for word in " ".join(settings.values()).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # An index has its files beside it.
            paths.add(path.parent if word.startswith("file://") and path.parent != Path("/") else path)
    lines = [f"{option} = " + value.replace("\n", "\n  ") for option, value in settings.items()]
    return "\n".join(["[global]", *lines, ""]), paths


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Podman with storage of its own; a test is skipped where it can't be had."""
    needed = ["podman", "runc"] + ["mmdebstrap"] * ("BASE_IMAGE" not in os.environ)
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root's rights, for overlay file systems and cgroups")
    made = Podman(ROOT / "build" / "containers")
    try:
        made("info")
    except PodmanError as error:
        pytest.skip(f"needs a podman that works: {error}")
    yield made
    made.clear()


@pytest.fixture(scope="session")
def image(podman: Podman) -> str:
    """The image of the service on CPUs."""
    named = os.environ.get("BASE_IMAGE")
    if named:
        return podman.build("postal-digits:test", BASE_IMAGE=named)
    try:
        podman.make_base()
    except PodmanError as error:
        pytest.skip(f"needs a base image, which could not be made; BASE_IMAGE may name one ({error})")
    return podman.build("postal-digits:test")
