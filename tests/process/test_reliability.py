import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api import digits
from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.support.calls import TIMEOUT
from tests.support.metrics import value
from tests.support.models import WarmModel
from tests.support.servers import StartServer
from tests.support.service import Service, service

Images = NDArray[np.uint8]
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def process() -> Iterator[Service]:
    """One server for all tests of this file; each leaves it in order."""
    with service() as started:
        yield started


def endpoint(process: Service) -> tuple[str, int]:
    host, _, port = process.address.rpartition(":")
    return host, int(port)


def open_files(process: Service) -> int:
    return len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))


async def answers(process: Service, images: Images, timeout: float = TIMEOUT) -> None:
    """Asserts that the server answers on a new connection."""
    async with grpc.aio.insecure_channel(process.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = pb.RecognizeBatchRequest(images=images[:20].tobytes())
        answer = await DigitServiceStub(channel).RecognizeBatch(request, timeout=timeout)
        assert len(answer.digits) == 20


async def settles(process: Service, files: int) -> None:
    """Waits until the server has at most `files` open files."""
    async with asyncio.timeout(TIMEOUT):
        while open_files(process) > files:
            await asyncio.sleep(0.05)


async def test_ten_thousand_connections_opened_and_dropped_leave_nothing_behind(process: Service, images: Images) -> None:
    await answers(process, images)
    before = open_files(process)
    address = endpoint(process)
    for _ in range(100):
        connections = [socket.create_connection(address, timeout=TIMEOUT) for _ in range(100)]
        for number, connection in enumerate(connections):
            if number % 2:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")  # half of them start HTTP/2
            connection.close()
        await asyncio.sleep(0)
    await settles(process, before + 5)  # until then, this address may have reached its limit of connections
    await answers(process, images)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: digits\r\n\r\n", id="HTTP/1.1"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 10_000, id="broken frames"),
        pytest.param(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x04\x00\x00\x00\x01", id="a frame of 16 MB announced"
        ),
        pytest.param(np.random.default_rng(0).bytes(1_000_000), id="a megabyte of noise"),
    ],
)
async def test_bytes_that_are_no_grpc_end_their_connection_and_nothing_else(
    process: Service, images: Images, garbage: bytes
) -> None:
    def send() -> None:
        with socket.create_connection(endpoint(process), timeout=TIMEOUT) as connection:
            try:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
            except OSError:  # the server closed the connection before it received all of it
                pass

    before = open_files(process)
    await asyncio.gather(*(asyncio.to_thread(send) for _ in range(20)), *(answers(process, images) for _ in range(5)))
    await answers(process, images)
    await settles(process, before + 5)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", CODE.INVALID_ARGUMENT),
        (b"\xff" * 1000, CODE.INVALID_ARGUMENT),
        (b"\x0a\xff\xff\xff\xff\x0f", CODE.INVALID_ARGUMENT),  # says that 4 GB follow
        (b"\x0a\x05short", CODE.INVALID_ARGUMENT),
        (bytes(20_000_000), CODE.RESOURCE_EXHAUSTED),
    ],
    ids=["zero-length", "malformed", "lying about its length", "short", "oversized"],
)
async def test_malformed_messages_get_their_status_code(
    process: Service, images: Images, message: bytes, code: CODE
) -> None:
    async with grpc.aio.insecure_channel(process.address) as channel:
        for method in ("Recognize", "RecognizeBatch"):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{digits.NAME}/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call(message, timeout=TIMEOUT)
            assert refusal.value.code() is code
    await answers(process, images)


async def test_a_storm_of_missed_deadlines_leaves_the_server_responsive(process: Service, images: Images) -> None:
    async with grpc.aio.insecure_channel(process.address) as channel:
        stub = DigitServiceStub(channel)
        request = pb.RecognizeBatchRequest(images=images.tobytes())
        codes = set()
        for _ in range(10):
            calls = [stub.RecognizeBatch(request, timeout=0.01) for _ in range(200)]
            for error in await asyncio.gather(*calls, return_exceptions=True):
                codes.add(error.code() if isinstance(error, grpc.aio.AioRpcError) else CODE.OK)
    assert codes <= {CODE.OK, CODE.DEADLINE_EXCEEDED, CODE.RESOURCE_EXHAUSTED}
    assert CODE.DEADLINE_EXCEEDED in codes
    await answers(process, images, timeout=5)
    async with asyncio.timeout(TIMEOUT):
        while process.scrape("digits_queue_length_images") or process.scrape("digits_in_flight_requests"):
            await asyncio.sleep(0.05)


async def test_a_client_that_sends_a_byte_at_a_time_blocks_no_other(process: Service, images: Images) -> None:
    # A connection preface and the head of a frame that never comes.
    with socket.create_connection(endpoint(process), timeout=TIMEOUT) as slow:
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x06\x04":
            slow.sendall(bytes([byte]))
            await answers(process, images, timeout=5)
    assert process.process.poll() is None


class SleepyModel(WarmModel):
    """A real model that takes 20 ms per run on any machine: 200 images per second in runs of 4."""

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(0.02)
        return super().infer(images)


async def test_at_three_times_the_capacity_every_call_ends_and_runs_are_in_time(
    start_server: StartServer, model: Classifier, images: Images
) -> None:
    server = await start_server(SleepyModel(model), instances=1, max_batch_size=4)
    ended: Counter[CODE] = Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        request = pb.RecognizeRequest(image=images[0].tobytes())

        async def call() -> None:
            try:
                await stub.Recognize(request, timeout=0.5)
                ended[CODE.OK] += 1
            except grpc.aio.AioRpcError as error:
                ended[error.code()] += 1

        calls: list[asyncio.Task[None]] = []
        for _ in range(120):  # 600 calls a second, for two seconds
            calls.extend(asyncio.create_task(call()) for _ in range(10))
            await asyncio.sleep(10 / 600)
        await asyncio.gather(*calls)
    registry = server.metrics.registry
    assert ended.total() == 1200
    assert set(ended) <= {CODE.OK, CODE.RESOURCE_EXHAUSTED, CODE.DEADLINE_EXCEEDED}
    refused = value(registry, "digits_rejected_requests_total", reason="queue_full")
    late = refused - ended[CODE.RESOURCE_EXHAUSTED]  # refusals that reached their caller after its deadline
    assert refused > 300
    assert 0 <= late <= ended[CODE.DEADLINE_EXCEEDED]
    assert ended[CODE.OK] > 100, "it can answer 200 a second, and is asked for two; a busy machine answers fewer"
    assert ended[CODE.OK] >= 0.9 * value(registry, "digits_batch_size_images_sum"), "the model worked for those who had gone"
