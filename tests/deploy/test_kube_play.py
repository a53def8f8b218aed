"""The local overlay, run by `podman kube play`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from deploy.quantity import parse_quantity
from serving.client import DigitClient
from serving.client.image_files import read_image
from tests.deploy.conftest import Prove
from tests.deploy.containers import Container
from tests.deploy.manifests import Manifest, containers, environment, of_kind, pod_of, render
from tests.deploy.podman import Podman, PodmanError
from tests.deploy.tracked import ROOT
from tests.support.service import free_ports

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]  # the first test may build the image


@contextmanager
def played(podman: Podman, image: str, file: Path, manifests: list[Manifest]) -> Iterator[Container]:
    """Runs the service of these manifests on free ports, and removes it at the end of the block."""
    (deployment,) = of_kind(manifests, "Deployment")
    (container,) = containers(pod_of(deployment))
    ports = dict(zip(("grpc", "metrics"), free_ports(2), strict=True))
    for port in container["ports"]:
        assert port["hostIP"] == "127.0.0.1"
        port["hostPort"] = ports[port["name"]]
    podman("tag", image, container["image"])
    file.write_text(yaml.safe_dump_all(manifests))
    try:
        # This network needs no bridge and no firewall rules, so nothing on this machine changes.
        printed = podman("kube", "play", "--network=slirp4netns", file).split()
        playing = Container(
            podman, printed[-1], ports["grpc"], ports["metrics"]
        )  # podman prints the pod's name, then the container's
        playing.wait_until_ready()
        yield playing
    finally:
        podman.attempt("kube", "down", file)


def test_the_local_overlay_reads_a_digit_and_is_hardened_under_podman(
    podman: Podman, image: str, tmp_path: Path, prove: Prove
) -> None:
    missing = [program for program in ("catatonit", "slirp4netns") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}")
    manifests = render("overlays/local")
    (deployment,) = of_kind(manifests, "Deployment")
    (container,) = containers(pod_of(deployment))
    with played(podman, image, tmp_path / "local.yaml", manifests) as playing:
        with DigitClient(playing.address, timeout_seconds=20) as client:
            assert client.recognize(read_image(ROOT / "serving" / "samples" / "7.png")).digit == 7

        context = pod_of(deployment)["securityContext"]
        status = playing.status()
        assert {int(user) for user in status["Uid"].split()} == {context["runAsUser"]} == {65532}
        assert {int(group) for group in status["Gid"].split()} == {context["runAsGroup"]} == {65532}
        assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
        with pytest.raises(PodmanError, match="Read-only file system"):
            podman("exec", "--user=0", playing.name, "python", "-c", "open('/opt/digits/new', 'w')")

        limits = container["resources"]["limits"]
        host = podman.inspect(playing.name)["HostConfig"]
        assert host["Memory"] == parse_quantity(limits["memory"])
        assert host["NanoCpus"] == parse_quantity(limits["cpu"]) * 1e9
        started = playing.event("started")  # as in the ConfigMap: in JSON, and on all addresses
        settings = environment(container, manifests)
        assert started["grpc_address"] == f"{settings['DIGITS_HOST']}:8001"
        prove(f"{limits['cpu']} CPUs: {started['workers']} workers with {started['instances']} concurrent runs each")
