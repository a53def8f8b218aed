import asyncio
import hashlib
import os
import re
import signal
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import grpc
import pytest

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as oip
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.telemetry.multiprocess_metrics import DIRECTORY
from tests.support.calls import TIMEOUT
from tests.support.servers import StartServer
from tests.support.service import Service, service
from tests.support.workers import connections, connections_of_both, counted, lives, ready, until


def maps(pid: int) -> str:
    """Returns the files that a process has mapped into its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


async def test_connections_are_spread_over_the_workers_and_their_counts_add_up(
    two: Service, tmp_path: Path, request_one: pb.RecognizeRequest
) -> None:
    async with connections(two, 24) as stubs:
        await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs for _ in range(5)))
    each = [counted(tmp_path, worker) for worker in range(2)]
    assert min(each) > 0
    assert sum(each) == two.scrape("digits_requests_total", code="OK") == 120
    assert two.scrape("digits_confidence_count") == two.scrape("digits_confidence_bucket", le="+Inf") == 120
    assert two.scrape("digits_workers") == 2
    assert two.scrape("digits_worker_restarts_total") == 0


async def test_a_worker_killed_under_load_loses_only_its_calls_and_is_replaced(
    two: Service, tmp_path: Path, request_one: pb.RecognizeRequest
) -> None:
    callers_each = 4
    answered = 0
    lost: list[int] = []  # connections, once for every call on them that was not answered
    codes: set[grpc.StatusCode] = set()
    over = False

    async def call(place: int, stub: DigitServiceStub) -> None:
        nonlocal answered
        while not over:
            try:
                await stub.Recognize(request_one, timeout=TIMEOUT)
                answered += 1
            except grpc.aio.AioRpcError as error:
                lost.append(place)
                codes.add(error.code())

    async with connections(two, 12) as stubs:
        owned = await connections_of_both(tmp_path, stubs, request_one)
        assert all(owned), "each worker should have some of the connections"
        answered = len(stubs)
        callers = [asyncio.create_task(call(n, stub)) for n, stub in enumerate(stubs) for _ in range(callers_each)]
        await until(lambda: answered > 500)
        cpu = two.scrape("process_cpu_seconds_total")
        killed = next(pid for pid in two.workers() if "counter_0.db" in maps(pid))
        os.kill(killed, signal.SIGKILL)
        await until(lambda: two.scrape("digits_worker_restarts_total") == 1 and two.scrape("digits_workers") == 2)
        since = answered
        await until(lambda: answered > since + 500)
        over = True
        await asyncio.gather(*callers)
    # gRPC retries calls that the dying worker had not read: on a busy machine none may be lost.
    assert codes <= {grpc.StatusCode.UNAVAILABLE}
    assert set(lost) <= owned[0], "the other worker's calls should not have noticed"
    # Each caller had one call on the way, and a few another, on a new connection that the dying worker still took.
    assert len(lost) <= 2 * callers_each * len(owned[0])
    assert answered <= two.scrape("digits_requests_total", code="OK") <= answered + len(lost)
    assert two.scrape("process_cpu_seconds_total") >= cpu
    assert killed not in two.workers()
    two.process.send_signal(signal.SIGTERM)
    status, log = await asyncio.to_thread(two.end)
    assert status == 0
    assert f"(pid {killed}) died with status -9; another takes its place in 0.1 s" in log
    total = int(re.search(r"by status code: \{'OK': (\d+)\}", log)[1])  # type: ignore[index]
    assert answered <= total <= answered + len(lost)


async def test_a_worker_that_stands_still_is_killed_and_replaced(tmp_path: Path, request_one: pb.RecognizeRequest) -> None:
    with service("--workers", "2", "--watchdog-seconds", "1", **{DIRECTORY: str(tmp_path)}) as started:
        still, other = started.workers()
        os.kill(still, signal.SIGSTOP)
        await until(lambda: started.scrape("digits_worker_restarts_total") == 1 and started.scrape("digits_workers") == 2)
        assert not lives(still)
        assert other in started.workers(), "the watchdog should leave a worker alone that responds"
        async with connections(started, 8) as stubs:
            await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
        started.process.send_signal(signal.SIGTERM)
        status, log = await asyncio.to_thread(started.end)
    assert status == 0
    assert f"(pid {still}) hangs; killing it" in log


async def test_no_worker_is_killed_because_the_whole_service_stood_still(
    tmp_path: Path, request_one: pb.RecognizeRequest
) -> None:
    with service("--workers", "2", "--watchdog-seconds", "1", **{DIRECTORY: str(tmp_path)}) as started:
        workers = started.workers()
        os.killpg(started.process.pid, signal.SIGSTOP)
        await asyncio.sleep(3)  # as a machine does that is paused: no condition tells when it was long enough
        os.killpg(started.process.pid, signal.SIGCONT)
        await asyncio.sleep(2)  # several looks more
        assert started.workers() == workers
        async with connections(started, 8) as stubs:
            await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))


async def test_a_worker_that_dies_again_and_again_is_replaced_ever_more_slowly(two: Service) -> None:
    for deaths in (1, 2, 3):
        os.kill(two.workers()[-1], signal.SIGKILL)
        await until(
            lambda n=deaths: two.scrape("digits_worker_restarts_total") == n and two.scrape("digits_workers") == 2  # type: ignore[misc]
        )
    assert len(two.workers()) == 2
    two.process.send_signal(signal.SIGTERM)
    status, log = await asyncio.to_thread(two.end)
    assert status == 0
    assert re.findall(r"worker \d .* takes its place in (\S+) s", log) == ["0.1", "0.2", "0.4"]


def test_the_supervisor_is_light(two: Service) -> None:
    def loads(pid: int) -> set[str]:
        return {library for library in ("cygrpc", "onnxruntime", "numpy") if library in maps(pid)}

    assert loads(two.process.pid) == set()
    assert [loads(worker) for worker in two.workers()] == [{"cygrpc", "onnxruntime", "numpy"}] * 2
    code = "import sys, serving.process.supervisor; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout.split()
    assert not {"grpc", "onnxruntime", "numpy", "google"} & set(loaded)


async def test_load_and_unload_reach_every_worker_and_later_replacements(
    tmp_path: Path, request_one: pb.RecognizeRequest
) -> None:
    environment = {DIRECTORY: str(tmp_path)}
    with service("--workers", "2", "--model-control", "true", "--drain-seconds", "0", **environment) as started:

        async def answers() -> set[str]:
            """Calls both workers, on many connections; returns the status codes."""
            async with connections(started, 24) as stubs:
                calls = [stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs]
                results = await asyncio.gather(*calls, return_exceptions=True)
            return {result.code().name if isinstance(result, grpc.aio.AioRpcError) else "OK" for result in results}

        async with grpc.aio.insecure_channel(started.address) as channel:
            open_inference: Any = GRPCInferenceServiceStub(channel)
            assert await answers() == {"OK"}
            statistics = await open_inference.ModelStatistics(oip.ModelStatisticsRequest(name="digits"), timeout=TIMEOUT)
            assert statistics.model_stats[0].inference_count == 24, "both workers' together"
            unload = oip.RepositoryModelUnloadRequest(model_name="digits")
            await open_inference.RepositoryModelUnload(unload, timeout=TIMEOUT)
            assert await answers() == {"UNAVAILABLE"}
            await until(lambda: ready(started) == (503, "model 'digits' is not loaded\n"))
        os.kill(started.workers()[0], signal.SIGKILL)
        await until(lambda: started.scrape("digits_worker_restarts_total") == 1 and started.scrape("digits_workers") == 2)
        assert await answers() == {"UNAVAILABLE"}
        async with grpc.aio.insecure_channel(started.address) as channel:
            open_inference = GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="there is no model 'shapes'"):
                await open_inference.RepositoryModelLoad(
                    oip.RepositoryModelLoadRequest(model_name="shapes"), timeout=TIMEOUT
                )
            await open_inference.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="digits"), timeout=TIMEOUT)
            assert await answers() == {"OK"}
            await until(lambda: ready(started) == (200, "ready\n"))


def tokens_of_one_client(tmp_path: Path) -> Path:
    """Writes a token file with one client, whose token is "secret" and who may send one image per 1,000 seconds."""
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(b"secret").hexdigest()
    tokens.write_text(f"[clients.desk]\ntoken_sha256 = '{digest}'\nroles = ['recognize']\nimages_per_second = 0.001\n")
    return tokens


async def test_workers_share_the_limits_of_a_client(tmp_path: Path, request_one: pb.RecognizeRequest) -> None:
    tokens = tokens_of_one_client(tmp_path)
    metadata = (("authorization", "Bearer secret"),)
    with service("--workers", "2", "--tokens", str(tokens), "--drain-seconds", "0") as started:
        async with connections(started, 24) as stubs:
            calls = [stub.Recognize(request_one, timeout=TIMEOUT, metadata=metadata) for stub in stubs]
            results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result.code() for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 23


async def test_a_single_server_ignores_the_metrics_directory_of_the_environment(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of_one_client(tmp_path)
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    await start_server(tokens=tokens)
    assert [*tmp_path.iterdir()] == [tokens]
