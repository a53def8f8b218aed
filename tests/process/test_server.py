import asyncio
import contextlib
import json
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import numpy as np
import onnxruntime
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from serving.api import digits
from serving.client import DigitClient
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.samples.draw import SAMPLES, draw
from tests.support.calls import TIMEOUT
from tests.support.metrics import until
from tests.support.models import GatedModel
from tests.support.servers import StartServer
from tests.support.service import DIGITS, Service, refused, service

Images = NDArray[np.uint8]


@pytest.fixture
def process() -> Iterator[Service]:
    """A server in its own process, with a drain of half a second."""
    with service("--drain-seconds", "0.5") as started:
        yield started


async def test_sigterm_under_load_loses_no_accepted_call_and_ends_with_status_0(process: Service, images: Images) -> None:
    answered = 0

    async def call_until_refused(stub: DigitServiceStub) -> grpc.StatusCode:
        nonlocal answered
        while True:
            try:
                await stub.Recognize(pb.RecognizeRequest(image=images[0].tobytes()), timeout=TIMEOUT)
                answered += 1
            except grpc.aio.AioRpcError as error:
                return error.code()

    async with grpc.aio.insecure_channel(process.address) as channel:
        stub = DigitServiceStub(channel)
        callers = [asyncio.create_task(call_until_refused(stub)) for _ in range(32)]
        async with asyncio.timeout(TIMEOUT):
            while answered < 500:
                await asyncio.sleep(0.01)
        process.process.send_signal(signal.SIGTERM)
        before = answered
        assert set(await asyncio.gather(*callers)) == {grpc.StatusCode.UNAVAILABLE}
    assert answered > before, "it should go on answering while it drains"
    status, log = await asyncio.to_thread(process.end)
    assert status == 0
    assert f"calls ended, by status code: {{'OK': {answered}}}" in log, "callers are sent away before they call again"


async def test_calls_during_the_shutdown_end_with_unavailable(process: Service, images: Images) -> None:
    ended: set[grpc.StatusCode] = set()

    async def call_on(stub: DigitServiceStub) -> None:
        while process.process.poll() is None:
            try:
                await stub.Recognize(pb.RecognizeRequest(image=images[0].tobytes()), timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                ended.add(error.code())

    async with contextlib.AsyncExitStack() as open_channels:
        callers = []
        for _ in range(12):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await open_channels.enter_async_context(grpc.aio.insecure_channel(process.address, options))
            callers.append(asyncio.create_task(call_on(DigitServiceStub(channel))))
        async with asyncio.timeout(TIMEOUT):
            while process.scrape("digits_requests_total", code="OK") < 200:
                await asyncio.sleep(0.01)
        process.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*callers)
    assert ended == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize(("pending", "calls"), [(5000, 5000), (20, 2000)])
async def test_a_burst_is_answered_except_beyond_the_pending_limit(images: Images, pending: int, calls: int) -> None:
    with service("--front", "grpcio", "--max-pending-calls", str(pending)) as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            stub = DigitServiceStub(channel)
            request = pb.RecognizeRequest(image=images[0].tobytes())
            burst = [stub.Recognize(request, timeout=3 * TIMEOUT) for _ in range(calls)]
            answers = await asyncio.gather(*burst, return_exceptions=True)
        errors = [answer for answer in answers if not isinstance(answer, pb.RecognizeResponse)]
        assert {type(error) for error in errors} <= {grpc.aio.AioRpcError}
        codes = Counter(error.code().name for error in errors)  # type: ignore[union-attr]
        codes["OK"] = calls - len(errors)
        assert codes["OK"] + codes["CANCELLED"] == calls
        assert bool(codes["CANCELLED"]) is (pending < calls)
        assert process.scrape("digits_requests_total", code="OK", method="Recognize") == codes["OK"] >= min(pending, calls)


async def test_callers_that_give_up_by_the_hundred_leave_no_traceback_in_the_log(process: Service, images: Images) -> None:
    async with grpc.aio.insecure_channel(process.address) as channel:
        stub = DigitServiceStub(channel)
        request = pb.RecognizeRequest(image=images[0].tobytes())
        milliseconds = 5
        while not process.scrape("digits_requests_total", code="DEADLINE_EXCEEDED"):  # some have to get as far as that
            calls = [stub.Recognize(request, timeout=milliseconds / 1000) for _ in range(500)]
            await asyncio.gather(*calls, return_exceptions=True)
            milliseconds += 5
        assert (await stub.Recognize(request, timeout=TIMEOUT)).model_version
    process.process.send_signal(signal.SIGTERM)
    status, log = await asyncio.to_thread(process.end)
    assert (status, log.count("Traceback")) == (0, 0), log
    assert "DEADLINE_EXCEEDED" in log


async def test_while_draining_only_readiness_drops(process: Service, images: Images) -> None:
    async with grpc.aio.insecure_channel(process.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
            return int(answer.status)

        changes = health.Watch(health_pb2.HealthCheckRequest(service=digits.NAME), timeout=TIMEOUT)
        assert (await changes.read()).status == health_pb2.HealthCheckResponse.SERVING
        process.process.send_signal(signal.SIGTERM)
        assert (await changes.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await status(digits.NAME) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        await DigitServiceStub(channel).Recognize(pb.RecognizeRequest(image=images[0].tobytes()), timeout=TIMEOUT)
        assert (await asyncio.to_thread(process.end))[0] == 0, "a watch that stays open must not hold up the end"


def test_a_second_sigterm_has_no_effect_and_sigint_ends_the_drain() -> None:
    with service("--drain-seconds", str(10 * TIMEOUT)) as started:
        started.process.send_signal(signal.SIGTERM)
        assert started.process.stderr is not None
        assert "SIGTERM: draining" in started.process.stderr.readline()
        started.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            started.process.wait(0.5)
        started.process.send_signal(signal.SIGINT)
        status, log = started.end()
        assert status == 0
        assert "SIGINT: stopping now" in log


def test_a_draining_server_is_not_ready_and_alive_over_http() -> None:
    with service("--workers", "1", "--drain-seconds", str(TIMEOUT)) as started:
        assert started.workers() == []
        root = started.metrics.removesuffix("metrics")
        with urlopen(root + "readyz", timeout=TIMEOUT) as answer:
            assert answer.read() == b"ready\n"
        started.process.send_signal(signal.SIGTERM)

        def ask_until_refused() -> None:
            while True:
                urlopen(root + "readyz", timeout=TIMEOUT).close()

        with pytest.raises(HTTPError, match="503"):
            ask_until_refused()
        with urlopen(root + "healthz", timeout=TIMEOUT) as answer:
            assert answer.read() == b"alive\n"


def test_a_server_without_drain_or_grace_stops_at_once_and_well() -> None:
    with service("--drain-seconds", "0", "--grace-seconds", "0") as started:
        started.process.send_signal(signal.SIGTERM)
        assert started.end()[0] == 0


def test_a_server_listens_on_ipv6_too() -> None:
    with service("--host", "::1") as started:
        assert started.address.startswith("[::1]:")
        with DigitClient(started.address, TIMEOUT) as client:
            assert client.recognize(draw(7)).digit == 7
        assert started.scrape("digits_predictions_total", digit="7") == 1


async def test_stopping_answers_what_is_in_flight(start_server: StartServer, gated: GatedModel, images: Images) -> None:
    server = await start_server(gated, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        request = pb.RecognizeRequest(image=images[0].tobytes())
        calls = [asyncio.ensure_future(stub.Recognize(request, timeout=TIMEOUT)) for _ in range(5)]
        await until(server.metrics.registry, "digits_in_flight_requests", 5)
        stopping = asyncio.create_task(server.stop(drain_seconds=0, grace_seconds=TIMEOUT))
        while True:  # until it takes no more
            try:
                await stub.Recognize(request, timeout=0.2)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    break
        gated.open()
        assert len(await asyncio.gather(*calls)) == 5
        await stopping


def test_a_taken_port_is_named(process: Service) -> None:
    port = process.address.rpartition(":")[2]
    status, complaint = refused("--grpc-port", port)
    assert status == 1
    assert f"digits serve: cannot listen on 127.0.0.1:{port} for gRPC: Address already in use\n" in complaint
    port = re.search(r":(\d+)/", process.metrics)[1]  # type: ignore[index]
    status, complaint = refused("--metrics-port", port)
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port} for metrics: Address already in use" in complaint


def test_every_wrong_setting_is_named_at_once() -> None:
    status, complaint = refused("--grpc-port", "70000", "--max-batch-size", "many", DIGITS_DRAIN_SECONDS="-1")
    assert status == 2
    wrong = re.findall(r"^digits serve: (\S+):", complaint, re.MULTILINE)
    assert wrong == ["--grpc-port", "--max-batch-size", "DIGITS_DRAIN_SECONDS"]


def test_a_queue_smaller_than_a_request_is_refused() -> None:
    status, complaint = refused(DIGITS_MAX_QUEUE_SIZE="10")
    assert status == 2
    assert "DIGITS_MAX_QUEUE_SIZE (10) is below --max-images-per-request (10000)" in complaint
    assert "not {" not in complaint


def test_a_repository_without_a_model_is_refused(tmp_path: Path) -> None:
    status, complaint = refused("--models", str(tmp_path))
    assert (status, complaint.count("\n")) == (1, 1)
    assert f"no model in {tmp_path}" in complaint


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "digits" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no model")
    status, complaint = refused("--models", str(tmp_path))
    assert status == 1
    assert f"{file} cannot be loaded" in complaint


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed")
def test_cuda_without_its_package_is_refused_and_never_replaced_by_the_cpu() -> None:
    status, complaint = refused("--provider", "cuda")
    assert status == 1
    assert "the CUDA provider needs onnxruntime-gpu" in complaint


def test_digits_recognize_reads_all_samples(process: Service) -> None:
    samples = [str(SAMPLES / f"{digit}.png") for digit in (*range(10), 7)]
    command = [*DIGITS, "recognize", "--json", "--address", process.address, *samples]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["file"] for answer in answers] == samples
    assert [answer["digit"] for answer in answers] == [*range(10), 7]
    assert all(0.5 < answer["confidence"] <= 1 for answer in answers)
    assert {answer["version"] for answer in answers} == {answers[0]["version"]}
    assert process.scrape("digits_predictions_total", digit="7") == 2
