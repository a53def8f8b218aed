"""The Dockerfile, checked without a build."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serving.settings import Settings
from tests.deploy.image_build import BASE_IMAGE, DOCKERFILE
from tests.deploy.tracked import ROOT

LOCKS = {"cpu": "requirements.lock", "gpu": "requirements-gpu.lock"}


def instructions(name: str) -> list[str]:
    """Returns the arguments of each instruction of that name, joined to one line."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return re.findall(rf"^{name} (.*)$", joined, flags=re.MULTILINE)


def locked(variant: str) -> dict[str, str]:
    """Returns the requirements of a lock by package."""
    text = (ROOT / "serving" / LOCKS[variant]).read_text().replace("\\\n", "")
    requirements = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {re.split(r"[=\[ ;]", requirement, maxsplit=1)[0]: requirement for requirement in requirements}


def test_hadolint_accepts_the_dockerfile() -> None:
    command = [Path(sys.executable).with_name("hadolint"), DOCKERFILE]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("variant", LOCKS)
def test_a_variant_installs_its_lock_and_nothing_without_a_hash(variant: str) -> None:
    """Covers the variant gpu too, which is too large to build here: two gigabytes of CUDA."""
    (copied,) = [copy for copy in instructions("COPY") if ".lock" in copy]
    assert f"serving/{LOCKS[variant]}" in copied
    (install,) = [run for run in instructions("RUN") if "--require-hashes" in run]
    assert f"{variant}) lock={LOCKS[variant]} ;;" in install
    packages = locked(variant)
    assert all("==" in requirement and "--hash=sha256:" in requirement for requirement in packages.values())
    runtimes = {"onnxruntime", "onnxruntime-gpu"} & packages.keys()
    assert runtimes == {"onnxruntime-gpu" if variant == "gpu" else "onnxruntime"}
    assert not {"tensorflow", "keras"} & packages.keys()


def test_only_the_gpu_variant_serves_on_cuda_by_default() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)
    providers = [stage.split("\n")[0] for stage in stages if "DIGITS_PROVIDER=cuda" in stage]
    assert providers == ["service AS variant-gpu"]
    assert stages[-1].startswith("variant-${VARIANT:-cpu}\n")


def test_ports_version_and_base_image_match_the_code() -> None:
    grpc_port, metrics_port = (Settings.model_fields[name].default for name in ("grpc_port", "metrics_port"))
    assert instructions("EXPOSE") == [f"{grpc_port} {metrics_port}"]
    check = (DOCKERFILE.parent / "healthcheck.py").read_text()
    assert f'os.environ.get("DIGITS_METRICS_PORT") or {metrics_port})' in check
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    arguments = instructions("ARG")
    assert f"VERSION={version}" in arguments
    assert f"BASE_IMAGE={BASE_IMAGE}" in arguments


def test_the_image_states_the_commit_that_it_was_built_from() -> None:
    last = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    assert "ARG REVISION=unknown\n" in last
    assert "ENV DIGITS_COMMIT=${REVISION}\n" in last
    assert "--build-arg REVISION=$$(git rev-parse HEAD)" in (ROOT / "Makefile").read_text()
