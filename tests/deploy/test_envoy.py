import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as oip
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.deploy.conftest import Prove
from tests.deploy.envoy_proxy import EnvoyProxy, envoy_proxy
from tests.deploy.load import CLIENTS, IMAGES, load, one_connection, until
from tests.deploy.replicas import WORKERS, Replica
from tests.support.calls import TIMEOUT

pytestmark = pytest.mark.deploy

EVICTED_SECONDS = 2.0  # the objective


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyProxy]:
    with envoy_proxy(tmp_path_factory.mktemp("pair"), "--model-control", *WORKERS) as started:
        yield started


def model_control(one: Replica, verb: str, port: int) -> None:
    """Makes a replica load or unload its model."""
    with grpc.insecure_channel(f"{one.address}:{port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        if verb == "unload":
            stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="digits"), timeout=TIMEOUT)
        else:
            stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="digits"), timeout=TIMEOUT)


async def test_calls_of_one_connection_are_spread_over_replicas_and_workers(pair: EnvoyProxy, prove: Prove) -> None:
    before = pair.answered()
    callers, calls_each = 128, 8
    digits: Counter[int] = Counter()

    async def call(stub: DigitServiceStub) -> None:
        for digit in range(calls_each):
            answer = await stub.Recognize(pb.RecognizeRequest(image=IMAGES[digit].tobytes()), timeout=TIMEOUT)
            digits[answer.digit - digit] += 1

    async with grpc.aio.insecure_channel(pair.envoy.address) as channel:
        await asyncio.gather(*(call(DigitServiceStub(channel)) for _ in range(callers)))
    assert digits == {0: callers * calls_each}, "a digit was misread"
    answered = [now - then for now, then in zip(pair.answered(), before, strict=True)]
    assert sum(answered) == callers * calls_each
    assert min(answered) > 0.3 * sum(answered)
    connections = [[_connections(pid, pair.ports.replica_grpc) for pid in one.service.workers()] for one in pair.replicas]
    assert min(map(min, connections)) > 0, connections
    prove(f"{sum(answered):,} calls on one connection: {' and '.join(f'{calls:,}' for calls in answered)} at two replicas")


def _connections(pid: int, port: int) -> int:
    """Counts the open connections at a port of a process."""
    return sum(
        one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
        for one in psutil.Process(pid).net_connections(kind="tcp")
    )


def test_a_call_larger_than_envoys_buffers_passes(pair: EnvoyProxy) -> None:
    images = np.stack(IMAGES * 200)
    with grpc.insecure_channel(pair.envoy.address, [("grpc.max_receive_message_length", -1)]) as channel:
        request = pb.RecognizeBatchRequest(images=images.tobytes())
        answer = DigitServiceStub(channel).RecognizeBatch(request, timeout=TIMEOUT)
    assert list(answer.digits) == [*range(10)] * 200


def test_envoy_refuses_to_unload_models_as_it_reaches_one_replica(pair: EnvoyProxy) -> None:
    with grpc.insecure_channel(pair.envoy.address) as channel, pytest.raises(grpc.RpcError) as refusal:
        GRPCInferenceServiceStub(channel).RepositoryModelUnload(
            oip.RepositoryModelUnloadRequest(model_name="digits"), timeout=TIMEOUT
        )
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "one pod of several" in str(refusal.value.details())


def test_envoy_exposes_only_its_readiness_and_its_metrics(pair: EnvoyProxy) -> None:
    def get(path: str, method: str = "GET") -> tuple[int, str]:
        url = f"http://127.0.0.1:{pair.ports.metrics}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=TIMEOUT) as answer:
                return answer.status, str(answer.read(), "utf-8")
        except urllib.error.HTTPError as error:
            return error.code, ""

    assert get("/ready") == (200, "LIVE\n")
    assert 'envoy_cluster_membership_healthy{envoy_cluster_name="digits"} 2' in get("/stats/prometheus")[1]
    for path in ("/", "/clusters", "/config_dump", "/quitquitquit", "/stats"):
        assert get(path) == (404, "")
    assert get("/ready", "POST") == (404, "")


def test_a_failed_call_is_logged_without_client_and_content(pair: EnvoyProxy) -> None:
    with grpc.insecure_channel(pair.envoy.address) as channel, pytest.raises(grpc.RpcError):
        DigitServiceStub(channel).Recognize(
            pb.RecognizeRequest(image=b"private"), timeout=TIMEOUT, metadata=(("authorization", "Bearer private"),)
        )
    log = pair.envoy.log
    until(lambda: "INVALID_ARGUMENT" in log.read_text())
    (line,) = (line for line in log.read_text().splitlines() if "INVALID_ARGUMENT" in line)
    call = json.loads(line)
    assert (call["event"], call["method"]) == ("call", "/digits.v1.DigitService/Recognize")
    assert call["replica"].partition(":")[0] in {one.address for one in pair.replicas}
    assert "private" not in line
    assert "127.0.0.1" not in line


def test_a_replica_without_its_model_is_evicted_without_a_failed_call(pair: EnvoyProxy, prove: Prove) -> None:
    first, second = pair.replicas
    with load(partial(one_connection, pair.envoy.address), CLIENTS) as tally:
        until(lambda: min(pair.answered()) > 0)
        model_control(first, "unload", pair.ports.replica_grpc)
        took = until(lambda: not pair.envoy.replicas()[first.address])
        at_first, at_second = first.answered(), second.answered()
        tally.wait(200)
        assert first.answered() <= at_first + CLIENTS, "only open calls"
        assert second.answered() >= at_second + 200 - CLIENTS
        model_control(first, "load", pair.ports.replica_grpc)
        until(lambda: first.answered() > at_first + 100)
    assert tally.failed == 0, (tally.ended, tally.complaint)
    assert took < EVICTED_SECONDS
    prove(f"evicted after {took:.2f} s; {tally.calls:,} calls, {tally.failed} failed")


def test_a_draining_replica_is_evicted_without_a_failed_call(tmp_path: Path, prove: Prove) -> None:
    with envoy_proxy(tmp_path) as started:
        first, _ = started.replicas
        with load(partial(one_connection, started.envoy.address), CLIENTS) as tally:
            tally.wait(100)
            first.terminate()  # its address stays in DNS
            took = until(lambda: not started.envoy.replicas()[first.address])
            before = first.answered()
            tally.wait(200)
            assert first.answered() <= before + CLIENTS, "only open calls"
            status, _ = first.end()
            tally.wait(200)
    assert status == 0
    assert tally.failed == 0, (tally.ended, tally.complaint)
    assert took < EVICTED_SECONDS
    prove(f"evicted after {took:.2f} s; {tally.calls:,} calls, {tally.failed} failed")


@pytest.mark.parametrize(
    ("front", "limit", "refusal"),
    [("http2", "--max-open-calls", "RESOURCE_EXHAUSTED"), ("grpcio", "--max-pending-calls", "CANCELLED")],
)
async def test_an_overloaded_replica_is_not_evicted(
    tmp_path: Path, prove: Prove, front: str, limit: str, refusal: str
) -> None:
    with envoy_proxy(tmp_path, "--workers", "1", "--front", front, limit, "20", count=1) as started:
        (busy,) = started.replicas
        ended: Counter[str] = Counter()
        checks = started.envoy.stat("cluster.digits.health_check.attempt")
        async with grpc.aio.insecure_channel(started.envoy.address) as channel:
            recognize, request = DigitServiceStub(channel).Recognize, pb.RecognizeRequest(image=IMAGES[7].tobytes())
            async with asyncio.timeout(3 * TIMEOUT):
                while started.envoy.stat("cluster.digits.health_check.attempt") < checks + 6:
                    burst = (recognize(request, timeout=TIMEOUT) for _ in range(1000))
                    answers = await asyncio.gather(*burst, return_exceptions=True)
                    ended.update(one.code().name if isinstance(one, grpc.aio.AioRpcError) else "OK" for one in answers)
                    assert started.envoy.replicas() == {busy.address: True}
        assert ended.keys() == {"OK", refusal}, "the burst should exceed the limit"
        assert started.envoy.stat("cluster.digits.health_check.failure") == 0
        assert started.envoy.stat("cluster.digits.upstream_rq_retry") == 0
        prove(f"{front}: {ended[refusal]:,} of {ended.total():,} calls refused; no retry, no failed health check")


def test_a_killed_replica_costs_no_call_of_a_reading_method(tmp_path: Path, prove: Prove) -> None:
    with envoy_proxy(tmp_path, *WORKERS) as started:
        first, second = started.replicas
        with load(partial(one_connection, started.envoy.address), 10 * CLIENTS) as tally:
            until(lambda: min(started.answered()) > 100)
            os.killpg(first.service.process.pid, signal.SIGKILL)
            took = until(lambda: not started.envoy.replicas()[first.address])
            tally.wait(200)
        retried = started.envoy.stat("cluster.digits.upstream_rq_retry_success")
        assert started.envoy.stat("cluster.digits.outlier_detection.ejections_enforced_total") > 0
        assert second.answered() > 200
    assert tally.failed == 0, (tally.ended, tally.complaint)
    assert retried > 0, "some calls should have been open"
    prove(f"{tally.calls:,} calls, {tally.failed} failed, {retried} retried; evicted after {took:.2f} s")
