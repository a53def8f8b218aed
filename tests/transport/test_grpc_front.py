import asyncio
import gc
import logging
import struct
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray

from serving.api import digits
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.transport import grpc_front
from tests.support.calls import TIMEOUT, refused
from tests.support.credentials import entry
from tests.support.digit_calls import recognize, recognize_batch
from tests.support.http2_client import PREFACE, SETTINGS, frame, grpc_message, http2_client, read_frame
from tests.support.metrics import value
from tests.support.model_files import publish_unsound
from tests.support.servers import StartServer

CODE = grpc.StatusCode


async def test_bytes_that_are_not_a_message_are_refused_and_the_next_call_succeeds(
    server: Server, images: NDArray[np.uint8]
) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{digits.NAME}/Recognize")
        error = await refused(call(b"\xff" * 50, timeout=TIMEOUT))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "the request is not a digits.v1.RecognizeRequest message"
        assert await recognize(DigitServiceStub(channel), images[0].tobytes())


async def test_health_and_reflection_know_the_service(server: Server) -> None:
    def reflect() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol(digits.NAME)
            return list(database.get_services()), [method.name for method in file.service[0].method]

    services, methods = await asyncio.to_thread(reflect)
    assert digits.NAME in services
    assert methods == ["Recognize", "RecognizeBatch", "ReadField", "ReportTruth", "RecognizeStream"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", digits.NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("cause", ["invalid request", "no message", "too large", "model", "model, in a stream"])
async def test_a_failed_call_leaves_no_images_for_the_garbage_collector(
    start_server: StartServer, tmp_path: Path, cause: str
) -> None:
    publish_unsound(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    directory, white = str(Path(grpc_front.__file__).parents[1]), b"\xff" * 784
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            for _ in range(5):
                await fail(channel, cause, white)
        gc.collect()
        frames = [one for one in gc.garbage if isinstance(one, FrameType) and one.f_code.co_filename.startswith(directory)]
        parts = [part for frame in frames for part in gc.get_referents(frame)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not [part for part in parts if isinstance(part, (bytes, memoryview)) and len(part) >= 784]


async def fail(channel: grpc.aio.Channel, cause: str, white: bytes) -> None:
    """Makes a call with a white image, which ends with an error."""
    stub = DigitServiceStub(channel)
    match cause:
        case "invalid request":
            await refused(recognize_batch(stub, white + b"1"))
        case "too large":
            check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert (await refused(check(white * 100, timeout=TIMEOUT))).code() is CODE.RESOURCE_EXHAUSTED
        case "no message":
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{digits.NAME}/RecognizeBatch")
            await refused(call(white, timeout=TIMEOUT))
        case "model":
            await refused(recognize_batch(stub, white))
        case _:
            requests = [pb.RecognizeStreamRequest(id=1, request=pb.RecognizeRequest(image=white))]
            answers = [answer async for answer in stub.RecognizeStream(iter(requests), timeout=TIMEOUT)]
            assert [answer.error.code for answer in answers] == [CODE.INTERNAL.value[0]]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/{digits.NAME}/Recognize", "Recognize"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "ServerReflectionInfo"),
        (f"/{digits.NAME}/NoSuchMethod", "unknown"),
    ],
)
async def test_a_call_without_a_token_is_counted_and_logged_with_its_caller(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, name: str
) -> None:
    (tmp_path / "tokens.toml").write_text(entry("sorter-7"))
    server = await start_server(tokens=tmp_path / "tokens.toml")
    with caplog.at_level(logging.DEBUG, "serving.api.dispatch"):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            error = await refused(call(b"", timeout=TIMEOUT))
    assert error.code() is CODE.UNAUTHENTICATED
    assert value(server.metrics.registry, "digits_requests_total", method=name, code="UNAUTHENTICATED") == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "serving.api.dispatch"]
    assert f"method={name} code=UNAUTHENTICATED" in line
    assert "peer=ipv4:127.0.0.1:" in line


async def test_the_server_states_its_limit_of_calls_and_headers(start_server: StartServer, front: str) -> None:
    server = await start_server(max_calls_per_connection=7, max_open_calls=9, max_header_bytes=4096)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    async with asyncio.timeout(TIMEOUT):
        kind, _, _, payload = await read_frame(reader)
    writer.close()
    assert kind == SETTINGS
    stated = dict(struct.iter_unpack(">HI", payload))
    assert stated[3] == {"http2": 7, "grpcio": 9}[front], "SETTINGS_MAX_CONCURRENT_STREAMS"
    assert stated[6] == 4096, "SETTINGS_MAX_HEADER_LIST_SIZE"


async def test_an_idle_connection_is_asked_to_leave(start_server: StartServer) -> None:
    server = await start_server(idle_seconds=0.5)
    async with http2_client(server.grpc_port) as client:
        assert (await client.call("/grpc.health.v1.Health/Check", grpc_message(b""))).headers["grpc-status"] == "0"
        async with asyncio.timeout(TIMEOUT):
            while not client.goaways:
                await asyncio.sleep(0.05)
