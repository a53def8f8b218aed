"""What can be said of the image's recipe without building it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serving.settings import Settings
from tests.deploy.containers import BASE_IMAGE, DOCKERFILE, ROOT

LOCKS = {"cpu": "requirements.lock", "gpu": "requirements-gpu.lock"}


def instructions(name: str) -> list[str]:
    """What follows an instruction of that name, each time, on one line."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    return re.findall(rf"^{name} (.*)$", joined, flags=re.MULTILINE)


def locked(variant: str) -> dict[str, str]:
    """The packages of a lock by name, each with all that the lock says of it."""
    text = (ROOT / "serving" / LOCKS[variant]).read_text().replace("\\\n", "")
    requirements = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {re.split(r"[=\[ ;]", requirement, maxsplit=1)[0]: requirement for requirement in requirements}


def test_hadolint_finds_nothing() -> None:
    command = [Path(sys.executable).with_name("hadolint"), DOCKERFILE]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("variant", LOCKS)
def test_each_variant_installs_its_lock_and_nothing_without_a_hash(variant: str) -> None:
    """Two gigabytes of CUDA are not built here: this is all that is checked of the variant gpu."""
    (copied,) = [copy for copy in instructions("COPY") if ".lock" in copy]
    assert f"serving/{LOCKS[variant]}" in copied
    (install,) = [run for run in instructions("RUN") if "--require-hashes" in run]
    assert f"{variant}) lock={LOCKS[variant]} ;;" in install
    packages = locked(variant)
    assert all("==" in requirement and "--hash=sha256:" in requirement for requirement in packages.values())
    runtimes = {"onnxruntime", "onnxruntime-gpu"} & packages.keys()
    assert runtimes == {"onnxruntime-gpu" if variant == "gpu" else "onnxruntime"}
    assert not {"tensorflow", "keras"} & packages.keys()


def test_the_variant_gpu_serves_on_cuda_and_the_other_as_it_does_by_default() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)
    providers = [stage.split("\n")[0] for stage in stages if "DIGITS_PROVIDER=cuda" in stage]
    assert providers == ["service AS variant-gpu"]
    assert stages[-1].startswith("variant-${VARIANT:-cpu}\n")


def test_its_ports_version_and_base_are_those_of_the_code() -> None:
    settings = Settings()
    assert instructions("EXPOSE") == [f"{settings.grpc_port} {settings.metrics_port}"]
    check = (DOCKERFILE.parent / "healthcheck.py").read_text()
    assert f'os.environ.get("DIGITS_METRICS_PORT") or {settings.metrics_port})' in check
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    arguments = instructions("ARG")
    assert f"VERSION={version}" in arguments
    assert f"BASE_IMAGE={BASE_IMAGE}" in arguments
