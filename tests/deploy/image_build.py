"""Builds the container image from the Dockerfile.

Podman's files are in build/containers, which `make clean` removes. Images stay there, so that a second run builds only
changed layers. No registry of images may be in reach, so mmdebstrap makes the base image from Debian's packages, under the
name of the official one. BASE_IMAGE in the environment names another base image, which podman pulls.
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.podman import TIMEOUT_SECONDS, Podman, PodmanError
from tests.deploy.tracked import ROOT

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
BASE_IMAGE = "python:3.11-slim-bookworm"
"""The Dockerfile's default base image."""

REVISION = "0123456789abcdef0123456789abcdef01234567"
"""The commit that the built image states."""

# A small Debian, about as large as the official image, with `python` at the same place. The hook avoids the package
# usrmerge, which depends on all of Perl.
_BASE = ["mmdebstrap", "--variant=apt", "--include=ca-certificates,python3-venv", "--quiet"]
_BASE += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
_BASE += [f"--dpkgopt=path-exclude=/usr/share/{unread}/*" for unread in ("doc", "info", "locale", "man")]
_BASE += ['--customize-hook=ln --symbolic /usr/bin/python3 "$1/usr/local/bin/python"', "bookworm"]

# Options of pip that name sources of packages.
_SOURCES = ("cert", "client-cert", "extra-index-url", "find-links", "index-url", "no-index", "proxy", "trusted-host")


def make_base(podman: Podman) -> None:
    """Makes a base image under the name of the official one, once.

    Raises:
        PodmanError: mmdebstrap or the import failed.
    """
    if podman.attempt("image", "exists", BASE_IMAGE).returncode == 0:
        return
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "base.tar"
        command = [*_BASE, str(archive)]
        made = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS * 5, check=False)
        if made.returncode:
            raise PodmanError(f"mmdebstrap: {made.stderr.strip() or made.returncode}")
        podman("import", archive, BASE_IMAGE, timeout=TIMEOUT_SECONDS * 5)


def build(podman: Podman, tag: str, **arguments: str) -> str:
    """Builds the unchanged Dockerfile with build arguments, and returns the tag.

    Raises:
        PodmanError: the build failed.
    """
    flags = [flag for name, value in arguments.items() for flag in ("--build-arg", f"{name}={value}")]
    # pip in the build takes packages from the same sources as pip on this machine.
    configuration, paths = _pip_configuration()
    with tempfile.NamedTemporaryFile("w") as pip_conf:
        pip_conf.write(configuration)
        pip_conf.flush()
        mounts = {pip_conf.name: "/etc/pip.conf", **{str(path): str(path) for path in paths}}
        flags += [flag for path, target in mounts.items() for flag in ("--volume", f"{path}:{target}:ro")]
        command = ["build", "--format", "docker", "--network", "host", "--file", str(DOCKERFILE), "--tag", tag, *flags]
        podman(*command, ROOT, timeout=TIMEOUT_SECONDS * 10)
    return tag


def _pip_configuration() -> tuple[str, set[Path]]:
    """Returns a pip.conf with this machine's sources of packages, and the local paths in it."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True).stdout
    options: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment overrides files
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _SOURCES:
            options[option] = str(ast.literal_eval(value))
    paths = set()
    for word in " ".join(options.values()).split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # The files of an index lie beside it.
            paths.add(path.parent if word.startswith("file://") and path.parent != Path("/") else path)
    lines = [f"{option} = " + value.replace("\n", "\n  ") for option, value in options.items()]
    return "\n".join(["[global]", *lines, ""]), paths


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Provides podman with a storage of its own, and skips the test where podman can't run."""
    needed = ["podman", "runc"] + ["mmdebstrap"] * ("BASE_IMAGE" not in os.environ)
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root, for overlay file systems and cgroups")
    made = Podman(ROOT / "build" / "containers")
    try:
        made("info")
    except PodmanError as error:
        pytest.skip(f"needs a podman that works: {error}")
    yield made
    made.clear()


@pytest.fixture(scope="session")
def image(podman: Podman) -> str:
    """Builds the image of the service for CPUs."""
    named = os.environ.get("BASE_IMAGE")
    if named:
        return build(podman, "postal-digits:test", BASE_IMAGE=named, REVISION=REVISION)
    try:
        make_base(podman)
    except PodmanError as error:
        pytest.skip(f"needs a base image, and mmdebstrap failed; BASE_IMAGE may name one ({error})")
    return build(podman, "postal-digits:test", REVISION=REVISION)
