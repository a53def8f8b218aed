import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from serving import digit_service
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.conftest import TIMEOUT, GatedModel, StartServer, value

Images = NDArray[np.uint8]

DIGITS = [sys.executable, "-m", "serving"]


@dataclass
class Process:
    """A `digits serve` of its own, answering."""

    process: subprocess.Popen[str]
    address: str
    metrics: str

    def scrape(self, series: str) -> float:
        with urllib.request.urlopen(self.metrics, timeout=TIMEOUT) as page:
            found = re.search(rf"^{re.escape(series)} (\S+)$", str(page.read(), "utf-8"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def end(self) -> tuple[int, str]:
        """Its exit status and the rest of its log, once it has ended."""
        _, log = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, log


def serve(*flags: str, **environment: str) -> subprocess.Popen[str]:
    command = [*DIGITS, "serve", "--grpc-port", "0", "--metrics-port", "0", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


@pytest.fixture
def process() -> Iterator[Process]:
    """A server in a process of its own, with a drain of half a second."""
    with serve("--drain-seconds", "0.5") as started:
        assert started.stderr is not None
        line = started.stderr.readline()
        found = re.search(r"(127\.0\.0\.1:\d+) for gRPC, (http://\S+)", line)
        assert found, line
        yield Process(started, found[1], found[2])
        started.kill()


def refused(*flags: str, **environment: str) -> tuple[int, str]:
    """Exit status and complaint of a server that can't start."""
    with serve(*flags, **environment) as process:
        _, complaint = process.communicate(timeout=TIMEOUT)
        return process.returncode, complaint


async def test_sigterm_under_load_loses_no_accepted_call_and_ends_with_status_0(process: Process, images: Images) -> None:
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
    assert f"calls ended, by status code: {{'OK': {answered}, 'UNAVAILABLE': 32}}" in log


async def test_while_draining_only_readiness_drops(process: Process, images: Images) -> None:
    async with grpc.aio.insecure_channel(process.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
            return int(answer.status)

        changes = health.Watch(health_pb2.HealthCheckRequest(service=digit_service.NAME), timeout=TIMEOUT)
        assert (await changes.read()).status == health_pb2.HealthCheckResponse.SERVING
        process.process.send_signal(signal.SIGTERM)
        assert (await changes.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await status(digit_service.NAME) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        await DigitServiceStub(channel).Recognize(pb.RecognizeRequest(image=images[0].tobytes()), timeout=TIMEOUT)
        changes.cancel()
    assert (await asyncio.to_thread(process.end))[0] == 0


async def test_a_sigterm_that_comes_twice_is_one_and_a_sigint_ends_the_drain() -> None:
    with serve("--drain-seconds", str(10 * TIMEOUT)) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert "draining" in "".join(process.stderr.readline() for _ in range(2))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0


async def test_stopping_answers_what_is_in_flight(start_server: StartServer, images: Images) -> None:
    server = await start_server(instances=1)
    gated = GatedModel(server.model)
    server.batcher._model = gated
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        request = pb.RecognizeRequest(image=images[0].tobytes())
        calls = [asyncio.ensure_future(stub.Recognize(request, timeout=TIMEOUT)) for _ in range(5)]
        while value(server.metrics.registry, "digits_in_flight_requests") < 5:
            await asyncio.sleep(0.01)
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


def test_a_taken_port_is_named(process: Process) -> None:
    port = process.address.rpartition(":")[2]
    status, complaint = refused("--grpc-port", port)
    assert status == 1
    assert f"digits serve: cannot listen on 127.0.0.1:{port} for gRPC; is it taken?\n" in complaint
    port = re.search(r":(\d+)/", process.metrics)[1]  # type: ignore[index]
    status, complaint = refused("--metrics-port", port)
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port} for metrics: Address already in use" in complaint


def test_every_wrong_setting_is_named_at_once() -> None:
    status, complaint = refused("--grpc-port", "70000", "--max-batch-size", "many", DIGITS_DRAIN_SECONDS="-1")
    assert status == 2
    assert re.findall(r"^digits serve: (\w+):", complaint, re.MULTILINE) == [
        "grpc_port",
        "max_batch_size",
        "drain_seconds",
    ]


def test_a_queue_smaller_than_a_request_is_refused() -> None:
    status, complaint = refused(DIGITS_MAX_QUEUE_SIZE="10")
    assert status == 2
    assert "max_queue_size (10) is below max_images_per_request (10000)" in complaint


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


def test_the_client_and_its_command_reach_a_server_of_its_own(process: Process) -> None:
    samples = [str(Path("serving/samples") / f"{digit}.png") for digit in range(10)]
    command = [*DIGITS, "recognize", "--json", "--address", process.address, *samples]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["file"] for answer in answers] == samples
    assert [answer["digit"] for answer in answers] == list(range(10))
    assert all(0.5 < answer["confidence"] <= 1 for answer in answers)
    assert {answer["version"] for answer in answers} == {answers[0]["version"]}
    assert process.scrape('digits_predictions_total{digit="7"}') == 1
