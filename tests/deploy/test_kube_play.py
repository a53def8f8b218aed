"""The manifests, run by `podman kube play`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from serving.client import DigitClient
from serving.client.image_files import read_image
from tests.deploy.conftest import Prove
from tests.deploy.containers import Container, Podman, PodmanError
from tests.deploy.manifests import Manifest, containers, environment, of_kind, pod_of, quantity, render
from tests.support.service import free_ports

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]  # it may be the first that needs the image


@contextmanager
def played(podman: Podman, image: str, file: Path, manifests: list[Manifest]) -> Iterator[Container]:
    """The service of these manifests, but on ports that are free here; gone when the block ends."""
    (deployment,) = of_kind(manifests, "Deployment")
    (container,) = containers(pod_of(deployment))
    ports = dict(zip(("grpc", "metrics"), free_ports(2), strict=True))
    for port in container["ports"]:
        assert port["hostIP"] == "127.0.0.1"
        port["hostPort"] = ports[port["name"]]
    podman("tag", image, container["image"])
    file.write_text(yaml.safe_dump_all(manifests))
    try:
        # This network needs neither a bridge nor rules of the firewall: nothing of this machine's is changed.
        printed = podman("kube", "play", "--network=slirp4netns", file).split()
        playing = Container(
            podman, printed[-1], ports["grpc"], ports["metrics"]
        )  # the pod's name goes before the container's
        playing.wait_until_ready()
        yield playing
    finally:
        podman.attempt("kube", "down", file)


def test_the_local_overlay_under_podman_kube_play_reads_a_digit_through_its_port_and_is_secured_as_it_says(
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
            assert client.recognize(read_image(Path("serving/samples/7.png"))).digit == 7

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
        assert host["Memory"] == quantity(limits["memory"])
        assert host["NanoCpus"] == quantity(limits["cpu"]) * 1e9
        started = playing.event("started")  # in JSON, and on all addresses: as the ConfigMap has it
        settings = environment(container, manifests)
        assert started["grpc_address"] == f"{settings['DIGITS_HOST']}:8001"
        prove(f"{limits['cpu']} CPUs: {started['workers']} workers with {started['instances']} runs at a time each")
