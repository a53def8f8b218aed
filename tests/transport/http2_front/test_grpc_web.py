"""gRPC-Web, as browsers speak it: the trailers are the last message of the body."""

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2

from serving.api import digits
from serving.call import Call
from serving.errors import InvalidRequest, QueueFull
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from serving.transport.routes import Streaming, Unary, Write
from tests.support.calls import TIMEOUT
from tests.support.http2_client import Response, grpc_message, http2_client
from tests.transport.http2_front.conftest import StartFront

BINARY, TEXT = "application/grpc-web", "application/grpc-web-text"
RECOGNIZE = f"/{digits.NAME}/Recognize"
CALL = "/test.Echo/Call"
REQUEST = grpc_message(pb.RecognizeRequest(image=bytes(784)).SerializeToString())
TRAILERS = 0x80


@pytest.fixture
def front() -> str:
    return "http2"


def parts(body: bytes) -> list[tuple[int, bytes]]:
    """Returns flags and content of each message of a body."""
    found = []
    while body:
        size = int.from_bytes(body[1:5])
        found.append((body[0], body[5 : 5 + size]))
        body = body[5 + size :]
    return found


async def until_messages(response: Response, count: int) -> list[tuple[int, bytes]]:
    """Waits until a response has `count` messages, trailers included."""
    async with asyncio.timeout(TIMEOUT):
        while len(found := parts(response.body)) < count:
            await asyncio.sleep(0.001)
    return found


@pytest.mark.parametrize("content_type", [BINARY, BINARY + "+proto", TEXT, TEXT + "+proto"])
async def test_an_answer_is_a_message_and_its_trailers(server: Server, content_type: str) -> None:
    text = content_type.startswith(TEXT)
    body = base64.b64encode(REQUEST) if text else REQUEST
    async with http2_client(server.grpc_port) as client:
        response = await client.call(RECOGNIZE, body, content_type=content_type)
    assert response.headers == {":status": "200", "content-type": content_type}
    assert response.blocks == 1
    answer, trailers = parts(base64.b64decode(response.body, validate=True) if text else response.body)
    assert answer[0] == 0
    assert pb.RecognizeResponse.FromString(answer[1]).decision == pb.DECISION_REJECT_INVALID_IMAGE
    assert trailers == (TRAILERS, b"grpc-status: 0\r\n")


@pytest.mark.parametrize("content_type", [BINARY, TEXT])
async def test_an_error_is_trailers_alone(start_front: StartFront, content_type: str) -> None:
    async def refuse(message: bytes, call: Call) -> bytes:
        raise QueueFull("zu viele wörter", 0.25)

    port = await start_front({CALL: Unary(refuse)})
    body = grpc_message(b"")
    async with http2_client(port) as client:
        sent = base64.b64encode(body) if content_type == TEXT else body
        response = await client.call(CALL, sent, content_type=content_type)
    assert response.headers[":status"] == "200"
    received = base64.b64decode(response.body) if content_type == TEXT else response.body
    lines = b"grpc-status: 8\r\ngrpc-message: zu viele w%C3%B6rter\r\ngrpc-retry-pushback-ms: 250\r\n"
    assert parts(received) == [(TRAILERS, lines)]


@pytest.mark.parametrize("body", [b"!", b"AAAA=AAA", base64.b64encode(REQUEST)[:-2], REQUEST])
async def test_a_text_body_that_is_not_base64_is_refused(start_front: StartFront, body: bytes) -> None:
    async def answer(message: bytes, call: Call) -> bytes:
        return message

    port = await start_front({CALL: Unary(answer)})
    async with http2_client(port) as client:
        response = await client.call(CALL, body, content_type=TEXT)
    trailers = base64.b64decode(response.body)
    assert b"grpc-status: 3\r\n" in trailers
    assert b"not base64" in trailers


async def test_a_compressed_message_and_a_deadline_are_as_in_grpc(server: Server) -> None:
    compressed = grpc_message(gzip.compress(REQUEST[5:]), flags=1)
    async with http2_client(server.grpc_port) as client:
        read = await client.call(RECOGNIZE, compressed, content_type=BINARY, grpc_encoding="gzip")
        late = await client.call(RECOGNIZE, REQUEST, content_type=BINARY, grpc_timeout="0m")
    assert parts(read.body)[-1] == (TRAILERS, b"grpc-status: 0\r\n")
    assert parts(late.body)[-1][1].startswith(b"grpc-status: 4\r\n")


async def test_a_watch_of_health_streams_changes_until_the_page_leaves(server: Server) -> None:
    watch = grpc_message(health_pb2.HealthCheckRequest(service=digits.NAME).SerializeToString())
    async with http2_client(server.grpc_port) as client:
        stream_id, response = client.send("/grpc.health.v1.Health/Watch", watch, content_type=BINARY)
        serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
        assert await until_messages(response, 1) == [(0, serving)]
        server._health.set(digits.NAME, health_pb2.HealthCheckResponse.NOT_SERVING)
        not_serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING).SerializeToString()
        assert (await until_messages(response, 2))[1] == (0, not_serving)
        client.reset(stream_id)
        async with asyncio.timeout(TIMEOUT):
            while [*server._health._watches]:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("answers", [0, 2])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_stream_ends_with_its_status(start_front: StartFront, answers: int, fails: bool) -> None:
    async def run(requests: AsyncIterator[bytes], write: Write, call: Call) -> None:
        async for request in requests:
            for _ in range(answers):
                await write(request)
        if fails:
            raise InvalidRequest("no more")

    port = await start_front({CALL: Streaming(run)})
    async with http2_client(port) as client:
        response = await client.call(CALL, grpc_message(b"seven"), content_type=BINARY)
    *messages, trailers = parts(response.body)
    assert messages == [(0, b"seven")] * answers
    assert trailers == (TRAILERS, b"grpc-status: 3\r\ngrpc-message: no more\r\n" if fails else b"grpc-status: 0\r\n")


async def test_text_has_no_streams(server: Server) -> None:
    async with http2_client(server.grpc_port) as client:
        response = await client.call("/grpc.health.v1.Health/Watch", base64.b64encode(grpc_message(b"")), content_type=TEXT)
    assert b"grpc-status: 12\r\n" in base64.b64decode(response.body)
