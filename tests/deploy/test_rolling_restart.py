import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.deploy.conftest import Prove
from tests.deploy.envoy import CONTAINER, PLAIN, bootstrap, envoy
from tests.deploy.envoy_proxy import envoy_proxy
from tests.deploy.load import CLIENTS, Tally, balancing, load, one_connection, until
from tests.deploy.names import name_server
from tests.deploy.replicas import WORKERS, replica
from tests.support.calls import TIMEOUT

pytestmark = pytest.mark.deploy


@dataclass(frozen=True)
class Rollout:
    """The replacement of both replicas while clients call.

    Attributes:
        behind_envoy: calls of clients that call Envoy.
        balancing: calls of clients that resolve the replicas.
        old, new: answered calls of each old and each new replica.
        statuses: exit statuses of the old replicas.
    """

    behind_envoy: Tally
    balancing: Tally
    old: list[int]
    new: list[int]
    statuses: list[int]


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    """Replaces each replica as a Deployment does: the new one serves before the old one gets SIGTERM.

    There is no preStop pause: an old replica drains from the moment that its address leaves DNS.
    """
    with envoy_proxy(tmp_path_factory.mktemp("rollout"), *WORKERS) as started, ExitStack() as stack:
        names, ports = started.names, started.ports
        by_name = f"dns://127.0.0.1:{names.port}/digits-headless:{ports.replica_grpc}"
        with (
            load(partial(one_connection, started.envoy.address), CLIENTS) as behind_envoy,
            load(partial(balancing, by_name), CLIENTS) as directly,
        ):
            until(lambda: min(started.answered()) > 100)
            new = []
            for number, old in enumerate(started.replicas):
                address = f"127.0.0.{10 + number}"
                new.append(stack.enter_context(replica(address, ports.replica_grpc, ports.replica_metrics, *WORKERS)))
                names.addresses = [*names.addresses, address]
                until(new[-1].answered)  # a Deployment waits for minReadySeconds instead
                names.addresses = [one for one in names.addresses if one != old.address]
                old.terminate()
            ended = [old.end() for old in started.replicas]
            until(lambda: started.envoy.replicas() == {one.address: True for one in new})
            behind_envoy.wait(500)
            directly.wait(500)
        return Rollout(
            behind_envoy,
            directly,
            old=[calls for _, calls in ended],
            new=[one.answered() for one in new],
            statuses=[status for status, _ in ended],
        )


def test_a_rolling_restart_behind_envoy_loses_no_call(rollout: Rollout, prove: Prove) -> None:
    tally = rollout.behind_envoy
    assert tally.failed == 0, (tally.ended, tally.complaint)
    assert rollout.statuses == [0, 0]
    assert tally.calls > 1000
    prove(f"{CLIENTS} clients, {tally.calls:,} calls, {tally.failed} failed")


def test_a_rolling_restart_loses_no_call_of_balancing_clients(rollout: Rollout, prove: Prove) -> None:
    tally = rollout.balancing
    assert tally.failed == 0, (tally.ended, tally.complaint)
    assert tally.calls > 1000
    prove(f"{CLIENTS} clients, {tally.calls:,} calls, {tally.failed} failed")


def test_in_a_rolling_restart_every_call_is_answered_exactly_once(rollout: Rollout, prove: Prove) -> None:
    answered = [*rollout.old, *rollout.new]
    assert min(answered) > 0
    assert sum(answered) == rollout.behind_envoy.calls + rollout.balancing.calls
    old, new = (" and ".join(f"{calls:,}" for calls in each) for each in (rollout.old, rollout.new))
    prove(f"{sum(answered):,} calls of both kinds: {old} at the old replicas, {new} at the new ones")


def test_a_shutdown_of_envoy_loses_no_call_of_retrying_clients(tmp_path: Path, prove: Prove) -> None:
    (tmp_path / "other").mkdir()
    with envoy_proxy(tmp_path, *WORKERS, count=1) as stays:
        ports = stays.ports.beside("127.0.0.20")
        with envoy(PLAIN, tmp_path / "other", ports, stays.names.port) as leaves, name_server(ports.host) as names:
            # Like the Service in front of Envoy's pods, DNS leads new connections to an Envoy that is not stopping.
            by_name = f"dns://127.0.0.1:{names.port}/digits-envoy:{ports.grpc}"
            # gRPC clients retry a call by default if the connection closed before the call began.
            with load(partial(balancing, by_name), CLIENTS) as tally:
                tally.wait(200)
                names.addresses = [stays.ports.host]
                answer = pre_stop(ports.admin)
                assert answer.startswith("HTTP/1.1 200 OK")
                assert leaves.stat("http.grpc.downstream_cx_active") == 0
                leaves.process.terminate()
                assert leaves.process.wait(TIMEOUT) == 0
                tally.wait(200)
    assert tally.failed == 0, (tally.ended, tally.complaint)
    prove(f"{CLIENTS} clients, {tally.calls:,} calls, {tally.failed} failed")


def pre_stop(admin_port: int) -> str:
    """Runs the Deployment's preStop hook for Envoy, and returns the answer of the admin interface."""
    deployed = bootstrap(PLAIN)["admin"]["address"]["socket_address"]["port_value"]
    command: list[str] = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    here = [part.replace(f"127.0.0.1/{deployed}", f"127.0.0.1/{admin_port}") for part in command]
    return subprocess.run(here, capture_output=True, text=True, timeout=60, check=True).stdout
