import socket
from contextlib import suppress

import pytest

from serving.ports import PortTaken, listen, reserve
from tests.support.calls import TIMEOUT
from tests.support.service import service
from tests.support.workers import until


def answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), TIMEOUT):
        return True
    return False


@pytest.mark.parametrize("front", ["http2", "grpcio"])
@pytest.mark.parametrize(
    ("host", "reachable"),
    [("0.0.0.0", (True, True)), ("::", (True, True)), ("127.0.0.1", (True, False)), ("::1", (False, True))],  # noqa: S104
)
async def test_a_host_means_the_same_for_both_ports_and_fronts(host: str, reachable: tuple[bool, bool], front: str) -> None:
    with service("--workers", "1", "--host", host, "--front", front, "--drain-seconds", "0") as started:
        for where in (started.address, started.metrics.removeprefix("http://").removesuffix("/metrics")):
            port = int(where.rpartition(":")[2])
            assert (answers("127.0.0.1", port), answers("::1", port)) == reachable


async def test_workers_share_a_port_on_all_addresses() -> None:
    with service("--workers", "2", "--host", "::", "--drain-seconds", "0") as started:
        port = int(started.address.rpartition(":")[2])
        await until(lambda: answers("127.0.0.1", port) and answers("::1", port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_in_one_family_is_refused(host: str, taken: str) -> None:
    (other,) = listen(taken, 0, "a test")
    with other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf":{port} for metrics: Address already in use"):
            listen(host, port, "metrics")
        with pytest.raises(PortTaken, match=rf":{port} for gRPC: Address already in use"), reserve(host, port):
            pass


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(PortTaken, match=r"cannot listen on nowhere\.invalid:1 for metrics: "):
        listen("nowhere.invalid", 1, "metrics")
