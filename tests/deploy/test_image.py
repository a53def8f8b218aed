"""The container image, built and run."""

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from serving.client import DigitClient
from serving.client.image_files import read_image
from tests.deploy.conftest import Prove
from tests.deploy.containers import Container, Podman, PodmanError
from tests.deploy.load import load, one_connection, until
from tests.support.model_files import place, publish_shifted

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]  # the first of them builds the image

MOST_BYTES = 400_000_000
SEVEN = Path("serving/samples/7.png")
UNWANTED_PROGRAMS = {"as", "c++", "cc", "clang", "digits-train", "g++", "gcc", "ld", "make", "pip", "pip3", "wheel"}
UNWANTED_PACKAGES = {"ensurepip", "keras", "onnx", "pip", "setuptools", "tensorflow", "tf2onnx", "training", "wheel"}


def digit_read(container: Container) -> int:
    """What the service makes of a sample of a seven."""
    with DigitClient(container.address, timeout_seconds=20) as client:
        return client.recognize(read_image(SEVEN)).digit


@pytest.fixture(scope="module")
def tree(podman: Podman, image: str) -> Iterator[Path]:
    """The root of the image, to look at."""
    yield Path(podman("image", "mount", image).strip())
    podman("image", "unmount", image)


def test_the_image_is_built_of_the_dockerfile_as_it_is_and_has_less_than_400_mb(
    podman: Podman, image: str, prove: Prove
) -> None:
    inspected = podman.inspect(image)
    prove(f"{inspected['Size'] / 1e6:.0f} MB")
    assert inspected["Size"] < MOST_BYTES
    config = inspected["Config"]
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["ExposedPorts"].keys() == {"8001/tcp", "8002/tcp"}
    assert config["Labels"]["org.opencontainers.image.title"] == "postal-digits"


def test_no_compiler_no_package_installer_no_tensorflow_and_nothing_of_training_is_in_it(tree: Path) -> None:
    programs = {file.name for directory in tree.rglob("bin") if directory.is_dir() for file in directory.iterdir()}
    assert {"python", "digits"} <= programs
    assert not {program for program in programs if program.split("-")[-1] in UNWANTED_PROGRAMS}
    installed = {package.name for directory in tree.rglob("*-packages") for package in directory.iterdir()}
    assert {"serving", "onnxruntime"} <= installed
    assert not installed & UNWANTED_PACKAGES
    assert not list(tree.rglob("*.whl"))
    assert not list(tree.rglob("model.keras"))


def test_the_user_that_it_runs_as_can_change_nothing_in_it(tree: Path) -> None:
    changeable = []
    for directory, directories, files in os.walk(tree):
        for path in (Path(directory, name) for name in (*directories, *files)):
            status = path.lstat()
            open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
            kept = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            if kept and (open_to_all or 65532 in (status.st_uid, status.st_gid)):
                changeable.append(path)
    assert changeable == []


def test_it_reads_a_digit_on_a_read_only_root_as_nobody_in_particular_and_without_capabilities(
    podman: Podman, image: str
) -> None:
    with podman.serving(image) as container:
        assert digit_read(container) == 7
        status = container.status()
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
        assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        with pytest.raises(PodmanError, match="Read-only file system"):
            podman("exec", "--user=0", container.name, "python", "-c", "open('/opt/digits/new', 'w')")


def test_it_writes_nothing_but_the_metrics_of_its_workers_and_those_to_memory(podman: Podman, image: str) -> None:
    # The root may be written to here, so that what would be, shows.
    with podman.serving(image, "--read-only=false", DIGITS_WORKERS="2") as container:
        assert digit_read(container) == 7
        changed = {line.split()[-1] for line in podman("diff", container.name).splitlines() if line}
        assert changed <= {"/etc", "/etc/group", "/etc/passwd"}, "podman itself gives the user a name"
        (metrics,) = container.execute("ls", "-A", "/dev/shm").split()  # noqa: S108 - the container's
        assert metrics.startswith("digits-metrics-")


@pytest.fixture(scope="module")
def limits(podman: Podman, image: str) -> None:
    """Skips what needs limits where there can be none."""
    try:
        with podman.created(image, "--network=none", "--cpus=1", "--memory=64m", "--entrypoint=true"):
            pass
    except PodmanError as error:
        pytest.skip(f"needs cgroups that limit CPU and memory: {error}")


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("cpus", [1, 2])
def test_as_many_workers_and_runs_at_a_time_as_the_cpu_quota_allows(podman: Podman, image: str, cpus: int) -> None:
    if len(os.sched_getaffinity(0)) < cpus:
        pytest.skip(f"needs {cpus} cores")
    with podman.serving(image, f"--cpus={cpus}") as container:
        started = container.event("started")
        assert (started["workers"], started["instances"]) == (cpus, cpus)


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(("megabytes", "status"), [(64, 137), (512, 0)])
def test_who_takes_more_memory_than_the_limit_is_killed_with_137(
    podman: Podman, image: str, megabytes: int, status: int
) -> None:
    flags = ("--network=none", f"--memory={megabytes}m", f"--memory-swap={megabytes}m", "--entrypoint=python")
    with podman.created(image, *flags, command=("-c", "b'x' * (256 << 20)")) as name:
        assert int(podman("wait", name)) == status


def test_told_to_stop_under_load_it_loses_no_call_and_ends_with_0(podman: Podman, image: str, prove: Prove) -> None:
    with podman.serving(image) as container, load(partial(one_connection, container.address), clients=4) as tally:
        tally.wait(100)
        podman("kill", "--signal=TERM", container.name)
        until(lambda: container.readiness() == (503, "draining"))
        tally.wait(100)
        assert tally.failed == 0, "it answers while it drains"
        assert podman("wait", container.name).strip() == "0"
        assert tally.ended.keys() == {"OK", "UNAVAILABLE"}, tally.complaint
        answered = tally.ended["OK"]
        assert container.event("stopped")["calls"]["OK"] == answered, "each answer has reached its caller"
        prove(f"{answered:,} calls answered, before and while it drained; those after that were told UNAVAILABLE")


def test_its_health_check_passes_while_it_answers_and_fails_while_it_drains(podman: Podman, image: str) -> None:
    with podman.serving(image, DIGITS_DRAIN_SECONDS="600") as container:
        podman("healthcheck", "run", container.name)
        podman("kill", "--signal=TERM", container.name)
        until(lambda: container.readiness() == (503, "draining"))
        assert digit_read(container) == 7
        assert podman.attempt("healthcheck", "run", container.name).returncode == 1
        (last, *_) = reversed(container.state()["Health"]["Log"])
        assert last["Output"].strip() == "not ready: draining"


def test_a_mounted_model_repository_is_served_in_the_place_of_the_bundled_models(
    podman: Podman, image: str, tmp_path: Path
) -> None:
    publish_shifted(tmp_path / "models", 3)  # it says of every digit that it is the next one
    mount = f"--volume={tmp_path / 'models'}:/models:ro"
    with podman.serving(image, mount, DIGITS_MODELS="/models") as container:
        assert container.event("started")["version"] == "3"
        assert digit_read(container) == 8


def test_a_model_repository_with_nothing_sound_in_it_ends_it_with_the_reason(
    podman: Podman, image: str, tmp_path: Path
) -> None:
    place(tmp_path / "models", 3).write_bytes(b"no model")
    mount = f"--volume={tmp_path / 'models'}:/models:ro"
    with podman.starting(image, mount, DIGITS_MODELS="/models") as container:
        assert podman("wait", container.name).strip() == "1"
        message = container.event("not_started")["message"]
        assert "/models" in message


def test_a_variant_that_there_is_not_fails_the_build_which_names_it(podman: Podman, image: str) -> None:
    with pytest.raises(PodmanError, match="variant-tpu"):
        podman.build("postal-digits:tpu", VARIANT="tpu")
