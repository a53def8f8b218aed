"""The Connect protocol with protobuf messages: one HTTP POST a call, and errors as JSON with a status of HTTP."""

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Callable

import pytest

from serving.api import digits
from serving.call import Call
from serving.errors import Code, QueueFull, RequestError
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from serving.transport.connect import connect
from serving.transport.http2_front import framing
from serving.transport.routes import Unary
from tests.support.http2_client import http2_client
from tests.transport.http2_front.conftest import StartFront

ECHO = "/test.Echo/Call"
PROTO = "application/proto"


@pytest.fixture
def front() -> str:
    return "http2"


async def echo(message: bytes, call: Call) -> bytes:
    return message


def failing(error: RequestError) -> Unary:
    async def fail(message: bytes, call: Call) -> bytes:
        raise error

    return Unary(fail)


async def test_an_answer_is_the_message_and_nothing_else(server: Server) -> None:
    request = pb.RecognizeRequest(image=bytes(784)).SerializeToString()
    async with http2_client(server.grpc_port) as client:
        response = await client.call(f"/{digits.NAME}/Recognize", request, content_type=PROTO)
    assert response.headers == {":status": "200", "content-type": PROTO}
    assert response.blocks == 1
    assert pb.RecognizeResponse.FromString(response.body).decision == pb.DECISION_REJECT_INVALID_IMAGE


# The table of the specification "Connect Protocol", in the order of the codes of gRPC.
STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


async def test_every_error_has_its_name_and_status(start_front: StartFront) -> None:
    handlers = {}
    for number, name in enumerate(STATUS, 1):
        error = RequestError("nö")
        error.code, error.reason = Code(number), "invalid"
        handlers[f"/test.Echo/{name}"] = failing(error)
    port = await start_front(handlers)
    async with http2_client(port) as client:
        for name, status in STATUS.items():
            response = await client.call(f"/test.Echo/{name}", b"", content_type=PROTO)
            assert response.headers == {":status": str(status), "content-type": "application/json"}
            assert json.loads(response.body) == {"code": name, "message": "nö"}


@pytest.mark.parametrize(("wait", "seconds"), [(0.03, "1"), (1.2, "2"), (None, None)])
async def test_a_refusal_says_when_to_retry(start_front: StartFront, wait: float | None, seconds: str | None) -> None:
    port = await start_front({ECHO: failing(QueueFull("too many", wait))})
    async with http2_client(port) as client:
        response = await client.call(ECHO, b"", content_type=PROTO)
        assert response.headers.get("retry-after") == seconds
        milliseconds = None if wait is None else f"{wait * 1000:g}"
        assert (await client.call(ECHO, b"\0" * 5)).headers.get("grpc-retry-pushback-ms") == milliseconds


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
async def test_a_compressed_body_is_read(start_front: StartFront, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    port = await start_front({ECHO: Unary(echo)})
    async with http2_client(port) as client:
        response = await client.call(ECHO, compress(b"seven" * 99), content_type=PROTO, content_encoding=encoding)
    assert (response.headers[":status"], response.body) == ("200", b"seven" * 99)


@pytest.mark.parametrize("other", [{}, {"grpc_encoding": "identity"}, {"grpc_encoding": ""}])
async def test_a_request_is_decompressed_off_the_loop_whatever_else_it_names(
    start_front: StartFront, other: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def decompress(content: bytes, encoding: bytes, max_bytes: int) -> bytes:
        threads.append(threading.current_thread())
        return framing.decompress(content, encoding, max_bytes)

    monkeypatch.setattr(connect, "decompress", decompress)
    body = gzip.compress(b"seven" * 99)
    async with http2_client(await start_front({ECHO: Unary(echo)})) as client:
        response = await client.call(ECHO, body, content_type=PROTO, content_encoding="gzip", **other)
    assert (response.headers[":status"], response.body) == ("200", b"seven" * 99)
    assert threads
    assert threading.current_thread() not in threads


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (b"seven", "br", "501", "unimplemented"),
        (b"seven", "gzip", "400", "invalid_argument"),
        (gzip.compress(b"seven")[:-3], "gzip", "400", "invalid_argument"),
        (gzip.compress(bytes(5 << 20)), "gzip", "429", "resource_exhausted"),
        (bytes((4 << 20) + 1), "identity", "429", "resource_exhausted"),
    ],
    ids=["unknown", "not gzip", "cut off", "bomb", "too large"],
)
async def test_a_body_that_can_not_be_taken_is_refused(
    start_front: StartFront, body: bytes, encoding: str, status: str, code: str
) -> None:
    port = await start_front({ECHO: Unary(echo)}, max_images_per_request=1)
    async with http2_client(port) as client:
        response = await client.call(ECHO, body, content_type=PROTO, content_encoding=encoding)
        assert response.headers[":status"] == status
        assert json.loads(response.body)["code"] == code
        assert (await client.call(ECHO, b"next", content_type=PROTO)).body == b"next"


async def test_a_call_ends_at_its_deadline(start_front: StartFront) -> None:
    cancelled = asyncio.Event()

    async def wait(message: bytes, call: Call) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return message

    port = await start_front({ECHO: Unary(wait)})
    async with http2_client(port) as client:
        response = await client.call(ECHO, b"", content_type=PROTO, connect_timeout_ms="20")
    assert response.headers[":status"] == "504"
    assert json.loads(response.body)["code"] == "deadline_exceeded"
    assert cancelled.is_set(), "the handler goes on for nobody"


@pytest.mark.parametrize("timeout", ["", "x", "-1", "1.5", "12345678901", "9m"])
async def test_a_timeout_that_is_no_number_is_refused(start_front: StartFront, timeout: str) -> None:
    port = await start_front({ECHO: Unary(echo)})
    async with http2_client(port) as client:
        response = await client.call(ECHO, b"", content_type=PROTO, connect_timeout_ms=timeout)
    assert response.headers[":status"] == "400"
    assert "connect-timeout-ms" in json.loads(response.body)["message"]


@pytest.mark.parametrize("content_type", [PROTO, "application/json"])
@pytest.mark.parametrize("method", ["RecognizeStream", "NoSuchMethod"])
async def test_streams_and_unknown_methods_are_unimplemented(server: Server, content_type: str, method: str) -> None:
    async with http2_client(server.grpc_port) as client:
        response = await client.call(f"/{digits.NAME}/{method}", b"{}", content_type=content_type)
    assert response.headers[":status"] == "501"
    assert json.loads(response.body)["code"] == "unimplemented"
