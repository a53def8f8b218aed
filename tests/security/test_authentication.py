import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from serving.api import digits, open_inference
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT
from tests.support.credentials import TOKEN, bearer, entry
from tests.support.http2_client import http2_client
from tests.support.metrics import until, value
from tests.support.models import GatedModel
from tests.support.servers import StartServer

RECOGNIZE = f"/{digits.NAME}/Recognize"
IMAGE = pb.RecognizeRequest(image=bytes(784)).SerializeToString()
TWO_CLIENTS = entry("sorter-7") + entry("desk", "d3", '"truth"')


@pytest.fixture
async def channel(start_server: StartServer, tokens: Path) -> AsyncIterator[tuple[grpc.aio.Channel, Server]]:
    """A connection to a server that has two clients, and polls its token file every 20 ms."""
    tokens.write_text(TWO_CLIENTS)
    server = await start_server(tokens=tokens, poll_seconds=0.02, max_images_per_request=1000)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened, server


async def call(
    channel: grpc.aio.Channel, token: str, path: str = RECOGNIZE, request: bytes = IMAGE
) -> grpc.aio.AioRpcError | None:
    """Makes a call; returns its error, if it ends with one."""
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    try:
        await method(request, timeout=TIMEOUT, metadata=bearer(token))
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def until_calls_end(channel: grpc.aio.Channel, token: str, code: grpc.StatusCode | None) -> None:
    """Waits until the calls of a client end with a status code, or, without one, until they are answered."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            error = await call(channel, token)
            if (error.code() if error else None) is code:
                return
            await asyncio.sleep(0.01)


async def test_refused_calls_are_counted_and_never_parsed(channel: tuple[grpc.aio.Channel, Server]) -> None:
    opened, server = channel
    registry = server.metrics.registry
    huge = bytes(100_000_000)
    for path, name in ((RECOGNIZE, "Recognize"), ("/digits.v1.DigitService/Forget", "unknown")):
        for request in (IMAGE, huge, b"\xff"):
            error = await call(opened, "wrong", path, request)
            assert error
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert value(registry, "digits_requests_total", method=name, code="UNAUTHENTICATED") == 3
    error = await call(opened, "d3", RECOGNIZE, huge)
    assert error
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == "client desk does not have the role recognize"
    assert value(registry, "digits_rejected_requests_total", reason="unauthenticated") == 6
    assert value(registry, "digits_rejected_requests_total", reason="permission_denied") == 1


async def test_a_server_reloads_its_token_file_and_keeps_it_if_it_breaks(
    channel: tuple[grpc.aio.Channel, Server], tokens: Path
) -> None:
    opened, server = channel
    await until_calls_end(opened, TOKEN, None)
    tokens.write_text(TWO_CLIENTS + entry("sorter-8", "t8"))
    await until_calls_end(opened, "t8", None)
    tokens.write_text(entry("sorter-8", "t8"))
    await until_calls_end(opened, TOKEN, grpc.StatusCode.UNAUTHENTICATED)
    tokens.write_text(entry("sorter-8", "t8")[:-40])
    async with asyncio.timeout(TIMEOUT):
        while not value(server.metrics.registry, "digits_credentials_reload_failures_total", kind="tokens"):
            await asyncio.sleep(0.01)
    await until_calls_end(opened, "t8", None)


async def test_a_stream_ends_when_its_clients_token_is_withdrawn(
    channel: tuple[grpc.aio.Channel, Server], tokens: Path
) -> None:
    opened, _ = channel
    stream = DigitServiceStub(opened).RecognizeStream(timeout=TIMEOUT, metadata=bearer(TOKEN))
    request = pb.RecognizeStreamRequest(request=pb.RecognizeRequest(image=bytes(784)))
    await stream.write(request)
    assert (await stream.read()).answer.model_version
    tokens.write_text(entry("desk", "d3", '"truth"'))
    await until_calls_end(opened, TOKEN, grpc.StatusCode.UNAUTHENTICATED)
    await stream.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED


STREAMS = {
    **dict.fromkeys(
        ["one image", "no message", "no image", "an unknown model", "nothing"], f"/{digits.NAME}/RecognizeStream"
    ),
    "no tensor": f"/{open_inference.NAME}/ModelStreamInfer",
    "a listing": "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "no listing": "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
MESSAGES = {
    "one image": pb.RecognizeStreamRequest(request=pb.RecognizeRequest(image=bytes(784))).SerializeToString(),
    "no image": pb.RecognizeStreamRequest(request=pb.RecognizeRequest(image=b"a")).SerializeToString(),
    "an unknown model": pb.RecognizeStreamRequest(
        request=pb.RecognizeRequest(image=bytes(784), model="letters")
    ).SerializeToString(),
    "no message": b"\xff",
    "nothing": b"",
    "no tensor": b"",
    "a listing": reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString(),
    "no listing": b"\xff",
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_of_a_revoked_client_ends_whatever_it_sends_next(
    channel: tuple[grpc.aio.Channel, Server], tokens: Path, kind: str
) -> None:
    opened, server = channel
    stream: Any = opened.stream_stream(STREAMS[kind])(timeout=TIMEOUT, metadata=bearer(TOKEN))
    if "Reflection" in STREAMS[kind]:
        await stream.write(MESSAGES["a listing"])
        assert await stream.read()
    else:
        await until(server.metrics.registry, "digits_open_streams", 1)
    tokens.write_text(entry("desk", "d3", '"truth"'))
    await until_calls_end(opened, TOKEN, grpc.StatusCode.UNAUTHENTICATED)
    await stream.write(MESSAGES[kind])
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert str(ended.value.details()).startswith("no valid token")


async def test_a_client_over_its_limit_gets_a_retry_time_others_are_served(
    channel: tuple[grpc.aio.Channel, Server], tokens: Path
) -> None:
    opened, server = channel
    tokens.write_text(entry("sorter-7", more="images_per_second = 50") + entry("sorter-8", "t8"))
    await until_calls_end(opened, "t8", None)
    batch = pb.RecognizeBatchRequest(images=bytes(500 * 784)).SerializeToString()
    assert await call(opened, TOKEN, f"/{digits.NAME}/RecognizeBatch", batch) is None
    error = await call(opened, TOKEN)
    assert error
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "client sorter-7 has used up its 50 images a second"
    assert 5_000 < int(str(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])) <= 10_000
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="rate_limited") == 1
    assert await call(opened, "t8", f"/{digits.NAME}/RecognizeBatch", batch) is None

    stream = DigitServiceStub(opened).RecognizeStream(timeout=TIMEOUT, metadata=bearer(TOKEN))
    await stream.write(pb.RecognizeStreamRequest(id=7, request=pb.RecognizeRequest(image=bytes(784))))
    answer = await stream.read()
    assert answer.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert answer.error.retry_after_ms > 1000
    stream.cancel()


async def test_images_refused_by_a_full_queue_are_not_charged(
    start_server: StartServer, gated: GatedModel, tokens: Path
) -> None:
    one_image = "images_per_second = 0.001"  # the second image only after 1,000 s
    tokens.write_text(entry("sorter-7", more=one_image) + entry("sorter-8", "t8"))
    server = await start_server(gated, tokens=tokens, instances=1, max_queue_size=10, max_images_per_request=10)
    ten, six = (pb.RecognizeBatchRequest(images=bytes(count * 784)).SerializeToString() for count in (10, 6))
    path = f"/{digits.NAME}/RecognizeBatch"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        running = asyncio.create_task(call(opened, "t8"))
        await gated.run_starts()
        waiting = asyncio.create_task(call(opened, "t8", path, ten))
        await until(server.metrics.registry, "digits_queue_length_images", 10)
        for _ in range(3):
            error = await call(opened, TOKEN, path, six)  # it would have more than half of the queue
            assert error
            assert "the queue is full" in (error.details() or "")
        gated.open()
        assert [await running, await waiting] == [None, None]
        assert await call(opened, TOKEN) is None
        error = await call(opened, TOKEN)
        assert error
        assert "has used up" in (error.details() or ""), "answered images are charged"


async def test_a_token_that_is_not_text_is_refused_and_not_logged(
    channel: tuple[grpc.aio.Channel, Server], caplog: pytest.LogCaptureFixture
) -> None:
    _, server = channel
    async with http2_client(server.grpc_port) as client:
        response = await client.call(RECOGNIZE, authorization=f"Bearer \udcff\udcfe{TOKEN}")
    assert response.headers["grpc-message"].startswith("no valid token")
    assert TOKEN not in caplog.text
    assert not caplog.records


@pytest.mark.parametrize("reflection", [True, False])
async def test_reflection_is_for_clients_and_can_be_switched_off(
    start_server: StartServer, tokens: Path, reflection: bool
) -> None:
    tokens.write_text(TWO_CLIENTS)
    server = await start_server(tokens=tokens, reflection=reflection)
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        error = await call(opened, "wrong", path, request)
        assert error
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        error = await call(opened, "d3", path, request)
        assert (error.code() if error else None) is (None if reflection else grpc.StatusCode.UNIMPLEMENTED)


async def test_only_clients_with_the_role_truth_may_report_truth(
    channel: tuple[grpc.aio.Channel, Server],
) -> None:
    opened, _ = channel
    request = pb.RecognizeRequest(image=bytes(784))
    answer = await DigitServiceStub(opened).Recognize(request, timeout=TIMEOUT, metadata=bearer(TOKEN))
    report = pb.ReportTruthRequest()
    report.truths.add(recognition_id=answer.recognition_id, values={0: "7"}, source=pb.TRUTH_SOURCE_KEYING)
    path = f"/{digits.NAME}/ReportTruth"
    error = await call(opened, TOKEN, path, report.SerializeToString())
    assert error
    assert error.details() == "client sorter-7 does not have the role truth"
    assert await call(opened, "d3", path, report.SerializeToString()) is None
    report.truths[0].source = pb.TRUTH_SOURCE_UNSPECIFIED
    error = await call(opened, "d3", path, report.SerializeToString())
    assert error
    assert error.details() == "truth 0: its source is 0, expected one of TruthSource"
    error = await call(opened, "d3", path, b"")
    assert error
    assert (error.code(), error.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "there are 0 truths, expected 1 to 1000",
    )
