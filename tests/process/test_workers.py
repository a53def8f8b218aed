import asyncio
import hashlib
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import run
from textwrap import indent
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest
from numpy.typing import NDArray
from prometheus_client.multiprocess import MultiProcessCollector

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as oip
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.process import supervisor as supervisor_module
from serving.process.supervisor import StartFailed, Supervisor
from serving.process.worker_process import WorkerProcess, spawn
from serving.settings import Settings
from serving.telemetry.multiprocess_metrics import DIRECTORY, MetricsDirectory
from tests.support.calls import TIMEOUT
from tests.support.servers import StartServer
from tests.support.service import Service, refused, service


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Service]:
    """A service with two workers and a drain of half a second."""
    with service("--workers", "2", "--drain-seconds", "0.5", **{DIRECTORY: str(tmp_path)}) as started:
        yield started


@pytest.fixture
def request_one(images: NDArray[Any]) -> pb.RecognizeRequest:
    return pb.RecognizeRequest(image=images[0].tobytes())


@asynccontextmanager
async def connections(service: Service, count: int) -> AsyncIterator[list[DigitServiceStub]]:
    """Stubs on `count` connections, each of which the kernel gives to one of the workers."""
    async with AsyncExitStack() as open_ones:
        apart = [("grpc.use_local_subchannel_pool", 1)]  # else they would share one
        channels = [grpc.aio.insecure_channel(service.address, options=apart) for _ in range(count)]
        yield [DigitServiceStub(await open_ones.enter_async_context(channel)) for channel in channels]


def counted(tmp_path: Path, worker: int) -> int:
    """Returns the calls that the worker with this number has counted."""
    files = [str(file) for file in tmp_path.glob(f"*/counter_{worker}.db")]
    merged = MultiProcessCollector.merge(files)
    values = [sample.value for metric in merged for sample in metric.samples if sample.name == "digits_requests_total"]
    return int(sum(values))


async def connections_of_both(
    tmp_path: Path, stubs: list[DigitServiceStub], request: pb.RecognizeRequest
) -> tuple[set[int], set[int]]:
    """Makes a call on each connection; returns the indices of the connections of worker 0, and of worker 1."""
    owned: tuple[set[int], set[int]] = (set(), set())
    for place, stub in enumerate(stubs):
        before = counted(tmp_path, 0)
        await stub.Recognize(request, timeout=TIMEOUT)
        owned[0 if counted(tmp_path, 0) > before else 1].add(place)
    return owned


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2 * TIMEOUT):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


def ready(service: Service) -> tuple[int, str]:
    try:
        with urlopen(service.metrics.replace("metrics", "readyz"), timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def maps(pid: int) -> str:
    """Returns the files that a process has mapped into its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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


async def test_sigterm_drains_all_workers_without_losing_a_call(two: Service, request_one: pb.RecognizeRequest) -> None:
    answered = 0

    async def call_until_refused(stub: DigitServiceStub) -> grpc.StatusCode:
        nonlocal answered
        while True:
            try:
                await stub.Recognize(request_one, timeout=TIMEOUT)
                answered += 1
            except grpc.aio.AioRpcError as error:
                return error.code()

    async with connections(two, 8) as stubs:
        callers = [asyncio.create_task(call_until_refused(stub)) for stub in stubs for _ in range(4)]
        await until(lambda: answered > 500)
        assert ready(two) == (200, "ready\n")
        two.process.send_signal(signal.SIGTERM)
        await until(lambda: ready(two) == (503, "draining\n"))
        before = answered
        two.process.send_signal(signal.SIGTERM)  # twice is once
        assert set(await asyncio.gather(*callers)) == {grpc.StatusCode.UNAVAILABLE}
    assert answered > before, "it should go on answering while it drains"
    status, log = await asyncio.to_thread(two.end)
    assert status == 0
    assert log.count("SIGTERM") == 1
    assert f"calls ended, by status code: {{'OK': {answered}, 'UNAVAILABLE': 32}}" in log


async def test_workers_whose_supervisor_is_killed_drain_and_exit(two: Service, request_one: pb.RecognizeRequest) -> None:
    workers = two.workers()
    assert len(workers) == 2
    async with connections(two, 8) as stubs:
        await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
        two.process.kill()
        await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
        await until(lambda: not any(lives(pid) for pid in workers))


async def test_ctrl_c_reaches_the_whole_process_group_and_loses_no_call_in_flight(
    two: Service, tmp_path: Path, request_one: pb.RecognizeRequest
) -> None:
    async with connections(two, 8) as stubs:
        await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
        os.killpg(two.process.pid, signal.SIGINT)
        status, log = await asyncio.to_thread(two.end)
    assert (status, log.count("SIGINT"), log.count("Traceback")) == (0, 1, 0), log
    assert "SIGINT: draining for 0 s" in log
    assert "by status code: {'OK': 8}" in log
    assert not os.listdir(tmp_path), "nothing should be left of its metrics"  # noqa: PTH208 - ruff takes the other for slow


def test_a_worker_that_hangs_at_the_shutdown_is_killed_and_the_status_is_1(tmp_path: Path) -> None:
    environment = {DIRECTORY: str(tmp_path)}
    with service("--workers", "2", "--drain-seconds", "0", "--grace-seconds", "0.1", **environment) as started:
        hanging = started.workers()[0]
        os.kill(hanging, signal.SIGSTOP)
        started.process.send_signal(signal.SIGTERM)
        status, log = started.end()
        assert status == 1
        assert f"(pid {hanging}) has not ended; killing it" in log
        assert not lives(hanging)


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


def test_a_model_that_cannot_be_served_ends_the_start_with_one_message(tmp_path: Path) -> None:
    file = tmp_path / "digits" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no model")
    status, complaint = refused("--workers", "2", "--models", str(tmp_path))
    assert status == 1
    assert len(re.findall("^digits serve: ", complaint, re.MULTILINE)) == 1
    assert complaint.splitlines()[-1].startswith(f"digits serve: {file} ")


def break_workers(tmp_path: Path, how: str) -> dict[str, str]:
    """Returns an environment in which workers, but not their supervisor, run this code before their own."""
    tmp_path.joinpath("sitecustomize.py").write_text(
        f"import sys\nif 'serving.process.worker' in sys.orig_argv:\n{indent(how, '    ')}"
    )
    return {"PYTHONPATH": str(tmp_path)}


def test_an_absent_repository_ends_the_start_with_one_message_that_names_it(tmp_path: Path) -> None:
    status, complaint = refused("--workers", "2", "--models", str(tmp_path / "missing"))
    assert status == 1
    assert len(re.findall("^digits serve: ", complaint, re.MULTILINE)) == 1
    assert complaint.splitlines()[-1].startswith("digits serve: ")
    assert str(tmp_path / "missing") in complaint.splitlines()[-1]


def test_a_bug_at_the_start_of_a_worker_is_logged_with_its_traceback(tmp_path: Path) -> None:
    code = """
from serving.process.server import Server
def start(self):
    raise LookupError("unforeseen")
Server.start = start
"""
    status, complaint = refused("--workers", "2", **break_workers(tmp_path, code))
    assert status == 1
    assert complaint.splitlines()[-1] == "digits serve: unexpected LookupError: unforeseen; the log has its traceback"
    assert "Traceback (most recent call last)" in complaint


def test_a_worker_that_closes_its_channel_has_a_moment_to_exit(tmp_path: Path) -> None:
    code = """
import atexit, time
from serving.process.message_channel import MessageChannel
async def receive(self):
    await self.close()
    raise LookupError("unforeseen")
MessageChannel.receive = receive
atexit.register(time.sleep, 0.5)
"""
    status, complaint = refused("--workers", "2", **break_workers(tmp_path, code))
    assert status == 1
    assert "LookupError: unforeseen" in complaint
    assert re.fullmatch(r"digits serve: worker \d exited during its start, with status 1", complaint.splitlines()[-1])


async def test_a_worker_does_not_outlive_a_start_that_fails_for_another_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = MetricsDirectory(2, [tmp_path])
    supervisor = Supervisor(Settings(workers=2, grpc_port=0), directory)
    first_failed = asyncio.Event()
    started: list[WorkerProcess] = []

    async def spawn_the_second_late(number: int, lock: int, mask: asyncio.Lock) -> WorkerProcess:
        if not first_failed.is_set():
            first_failed.set()
            raise OSError("no more processes")
        await supervisor._stopping.wait()
        started.append(await spawn(number, lock, mask))
        return started[0]

    monkeypatch.setattr(supervisor_module, "spawn", spawn_the_second_late)
    with pytest.raises(StartFailed, match="no more processes"):
        await asyncio.wait_for(supervisor.run(asyncio.Queue(), 0), TIMEOUT)
    assert [worker.process.returncode for worker in started] == [-signal.SIGKILL]
    directory.remove()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_other_workers_share_is_taken(two: Service, workers: str) -> None:
    port = two.address.rpartition(":")[2]
    status, complaint = refused("--workers", workers, "--grpc-port", port)
    assert status == 1
    assert complaint.splitlines()[-1].startswith(f"digits serve: cannot listen on 127.0.0.1:{port} for gRPC")


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_of_another_program_is_not_shared_with_it(option: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        status, complaint = refused("--workers", "2", "--grpc-port", port)
    assert (status, complaint.count("\n")) == (1, 1)
    assert f"digits serve: cannot listen on 127.0.0.1:{port} for gRPC: Address already in use" in complaint


def test_without_room_for_the_metrics_nothing_is_started(tmp_path: Path) -> None:
    status, complaint = refused("--workers", "2", **{DIRECTORY: str(tmp_path / "missing")})
    assert (status, complaint.count("\n")) == (1, 1)
    assert "digits serve: no room for the metrics of 2 workers" in complaint


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
