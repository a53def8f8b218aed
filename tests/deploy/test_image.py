"""The container image, built and run by podman."""

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from serving.client import DigitClient
from serving.client.image_files import read_image
from tests.deploy.conftest import Prove
from tests.deploy.containers import Container, serving, starting
from tests.deploy.image_build import REVISION, build
from tests.deploy.load import load, one_connection, until
from tests.deploy.podman import Podman, PodmanError
from tests.deploy.tracked import ROOT
from tests.support.model_files import place, publish_shifted

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]  # the first test builds the image

MOST_BYTES = 600_000_000
SEVEN = ROOT / "serving" / "samples" / "7.png"
UNWANTED_PROGRAMS = {"as", "c++", "cc", "clang", "digits-train", "g++", "gcc", "ld", "make", "pip", "pip3", "wheel"}
UNWANTED_PACKAGES = {"ensurepip", "keras", "onnx", "pip", "setuptools", "tensorflow", "tf2onnx", "training", "wheel"}


def digit_read(container: Container) -> int:
    """Sends a sample of a seven and returns the recognized digit."""
    with DigitClient(container.address, timeout_seconds=20) as client:
        return client.recognize(read_image(SEVEN)).digit


@pytest.fixture(scope="module")
def tree(podman: Podman, image: str) -> Iterator[Path]:
    """Mounts the root of the image."""
    yield Path(podman("image", "mount", image).strip())
    podman("image", "unmount", image)


def test_the_image_is_below_600_mb_and_states_its_user_and_commit(podman: Podman, image: str, prove: Prove) -> None:
    inspected = podman.inspect(image)
    prove(f"{inspected['Size'] / 1e6:.0f} MB")
    assert inspected["Size"] < MOST_BYTES
    config = inspected["Config"]
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["ExposedPorts"].keys() == {"8001/tcp", "8002/tcp"}
    assert config["Labels"]["org.opencontainers.image.title"] == "postal-digits"
    assert config["Labels"]["org.opencontainers.image.revision"] == REVISION
    assert f"DIGITS_COMMIT={REVISION}" in config["Env"]


def test_the_image_has_no_compiler_no_installer_and_no_training(tree: Path) -> None:
    programs = {file.name for directory in tree.rglob("bin") if directory.is_dir() for file in directory.iterdir()}
    assert {"python", "digits"} <= programs
    assert not {program for program in programs if program.split("-")[-1] in UNWANTED_PROGRAMS}
    installed = {package.name for directory in tree.rglob("*-packages") for package in directory.iterdir()}
    assert {"serving", "onnxruntime"} <= installed
    assert not installed & UNWANTED_PACKAGES
    assert not list(tree.rglob("*.whl"))
    assert not list(tree.rglob("model.keras"))


def test_the_user_of_the_image_can_change_no_file(tree: Path) -> None:
    changeable = []
    for directory, directories, files in os.walk(tree):
        for path in (Path(directory, name) for name in (*directories, *files)):
            status = path.lstat()
            open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
            kept = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            if kept and (open_to_all or 65532 in (status.st_uid, status.st_gid)):
                changeable.append(path)
    assert changeable == []


def test_a_hardened_container_reads_a_digit_without_capabilities(podman: Podman, image: str) -> None:
    with serving(podman, image) as container:
        assert digit_read(container) == 7
        status = container.status()
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
        assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        with pytest.raises(PodmanError, match="Read-only file system"):
            podman("exec", "--user=0", container.name, "python", "-c", "open('/opt/digits/new', 'w')")


def test_a_container_writes_only_metrics_and_verdicts_on_models(podman: Podman, image: str) -> None:
    # The root is writable here, so that any write shows.
    with serving(podman, image, "--read-only=false", DIGITS_WORKERS="2") as container:
        assert digit_read(container) == 7
        changed = {line.split()[-1] for line in podman("diff", container.name).splitlines() if line}
        written = {path for path in changed if not path.startswith("/tmp/digits-verdicts-65532")}  # noqa: S108 - the container's
        assert written <= {"/tmp", "/etc", "/etc/group", "/etc/passwd"}, "podman adds the user to the files of /etc"  # noqa: S108
        (metrics,) = container.execute("ls", "-A", "/dev/shm").split()  # noqa: S108 - the container's
        assert metrics.startswith("digits-metrics-")


@pytest.fixture(scope="module")
def limits(podman: Podman, image: str) -> None:
    """Skips a test where cgroups can't limit CPU and memory."""
    try:
        with podman.created(image, "--network=none", "--cpus=1", "--memory=64m", "--entrypoint=true"):
            pass
    except PodmanError as error:
        pytest.skip(f"needs cgroups that limit CPU and memory: {error}")


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("cpus", [1, 2])
def test_workers_and_runs_follow_the_cpu_quota(podman: Podman, image: str, cpus: int) -> None:
    if len(os.sched_getaffinity(0)) < cpus:
        pytest.skip(f"needs {cpus} cores")
    with serving(podman, image, f"--cpus={cpus}") as container:
        started = container.event("started")
        assert (started["workers"], started["instances"]) == (cpus, cpus)


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(("megabytes", "status"), [(64, 137), (512, 0)])
def test_a_process_above_the_memory_limit_is_killed_with_137(
    podman: Podman, image: str, megabytes: int, status: int
) -> None:
    flags = ("--network=none", f"--memory={megabytes}m", f"--memory-swap={megabytes}m", "--entrypoint=python")
    with podman.created(image, *flags, command=("-c", "b'x' * (256 << 20)")) as name:
        assert int(podman("wait", name)) == status


def test_sigterm_under_load_loses_no_call_and_exits_with_0(podman: Podman, image: str, prove: Prove) -> None:
    with serving(podman, image) as container, load(partial(one_connection, container.address), clients=4) as tally:
        tally.wait(100)
        podman("kill", "--signal=TERM", container.name)
        until(lambda: container.readiness() == (503, "draining"))
        tally.wait(100)
        assert tally.failed == 0, "the service answers while it drains"
        assert podman("wait", container.name).strip() == "0"
        assert tally.ended.keys() == {"OK", "UNAVAILABLE"}, tally.complaint
        answered = tally.ended["OK"]
        assert container.event("stopped")["calls"]["OK"] == answered, "every answer reached its caller"
        prove(f"{answered:,} calls answered, before and during the drain; later calls got UNAVAILABLE")


def test_the_health_check_passes_when_ready_and_fails_when_draining(podman: Podman, image: str) -> None:
    with serving(podman, image, DIGITS_DRAIN_SECONDS="600") as container:
        podman("healthcheck", "run", container.name)
        podman("kill", "--signal=TERM", container.name)
        until(lambda: container.readiness() == (503, "draining"))
        assert digit_read(container) == 7
        assert podman.attempt("healthcheck", "run", container.name).returncode == 1
        (last, *_) = reversed(container.state()["Health"]["Log"])
        assert last["Output"].strip() == "not ready: draining"


def test_a_mounted_model_repository_replaces_the_bundled_models(podman: Podman, image: str, tmp_path: Path) -> None:
    publish_shifted(tmp_path / "models", 3)  # answers every digit with the next one
    mount = f"--volume={tmp_path / 'models'}:/models:ro"
    with serving(podman, image, mount, DIGITS_MODELS="/models") as container:
        assert container.event("started")["version"] == "3"
        assert digit_read(container) == 8


def test_a_repository_without_a_sound_model_stops_the_start_with_a_reason(
    podman: Podman, image: str, tmp_path: Path
) -> None:
    place(tmp_path / "models", 3).write_bytes(b"no model")
    mount = f"--volume={tmp_path / 'models'}:/models:ro"
    with starting(podman, image, mount, DIGITS_MODELS="/models") as container:
        assert podman("wait", container.name).strip() == "1"
        message = container.event("not_started")["message"]
        assert "/models" in message


def test_an_unknown_variant_fails_the_build_and_is_named(podman: Podman, image: str) -> None:
    with pytest.raises(PodmanError, match="variant-tpu"):
        build(podman, "postal-digits:tpu", VARIANT="tpu")
