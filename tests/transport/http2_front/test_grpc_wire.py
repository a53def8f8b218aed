"""gRPC on the wire: headers, messages and trailers as the protocol writes them, and requests that break it."""

import asyncio
import gzip
import socket
import struct
import urllib.parse
import zlib
from typing import Any

import pytest

from serving.api import digits
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from serving.transport.http2_front.head import Head
from tests.support.calls import TIMEOUT
from tests.support.http2_client import Response, grpc_message, http2_client
from tests.support.metrics import value
from tests.support.models import GatedModel
from tests.support.servers import StartServer

RECOGNIZE = f"/{digits.NAME}/Recognize"
REQUEST = pb.RecognizeRequest(image=bytes(784)).SerializeToString()
OK, INVALID, DEADLINE, BUSY, UNIMPLEMENTED = "0", "3", "4", "8", "12"
NO_ERROR = 0  # an error code of HTTP/2


@pytest.fixture
def front() -> str:
    return "http2"


async def call(server: Server, body: bytes, path: str = RECOGNIZE, **headers: str) -> Response:
    async with http2_client(server.grpc_port) as client:
        return await client.call(path, body, **headers)


async def test_an_answer_is_headers_then_a_message_then_trailers(server: Server) -> None:
    response = await call(server, grpc_message(REQUEST))
    assert response.headers == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-accept-encoding": "identity, deflate, gzip",
        "grpc-status": OK,
    }
    assert response.blocks == 2
    flags, size = struct.unpack(">BI", response.body[:5])
    assert (flags, size) == (0, len(response.body) - 5)
    assert pb.RecognizeResponse.FromString(response.body[5:]).decision == pb.DECISION_REJECT_INVALID_IMAGE


async def test_an_error_without_an_answer_is_one_block_of_headers(server: Server) -> None:
    response = await call(server, grpc_message(b"\xff" * 9))
    assert response.headers[":status"] == "200"
    assert response.headers["grpc-status"] == INVALID
    assert (response.blocks, response.body) == (1, b"")


async def test_details_of_an_error_are_utf8_percent_encoded(server: Server) -> None:
    model = "préfixe 100 % 数字"
    request = pb.RecognizeRequest(image=bytes(784), model=model).SerializeToString()
    encoded = (await call(server, grpc_message(request))).headers["grpc-message"]
    assert encoded.isascii()
    assert "%25" in encoded
    assert "pr%C3%A9fixe 100 " in encoded, "printable ASCII stays as it is"
    assert model in urllib.parse.unquote(encoded, errors="strict")


@pytest.mark.parametrize(
    ("timeout", "seconds"), [("2H", 7200), ("3M", 180), ("4S", 4), ("5m", 0.005), ("6u", 6e-6), ("99999999n", 0.099999999)]
)
def test_a_timeout_has_one_of_six_units(timeout: str, seconds: float) -> None:
    assert Head(((b"grpc-timeout", timeout.encode()),)).grpc_timeout() == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("timeout", ["", "5", "S", "123456789S", "-1S", "1.5S", "1 S", "5s", "٣S"])
async def test_a_timeout_that_is_none_is_refused(server: Server, timeout: str) -> None:
    response = await call(server, grpc_message(REQUEST), grpc_timeout=timeout)
    assert response.headers["grpc-status"] == INVALID
    assert "grpc-timeout" in response.headers["grpc-message"]


@pytest.mark.parametrize("timeout", ["50m", "50000u", "50000000n", "0S"])
async def test_a_call_ends_at_its_deadline(start_server: StartServer, gated: GatedModel, timeout: str) -> None:
    server = await start_server(gated)
    try:
        response = await call(server, grpc_message(REQUEST), grpc_timeout=timeout)
    finally:
        gated.open()
    assert response.headers["grpc-status"] == DEADLINE
    async with asyncio.timeout(TIMEOUT):
        while value(server.metrics.registry, "digits_requests_total", method="Recognize", code="DEADLINE_EXCEEDED") != 1:
            await asyncio.sleep(0.001)


def test_binary_metadata_are_decoded_and_others_are_text() -> None:
    head = Head(
        (
            (b":path", b"/x"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"authorization", b"Bearer t"),
            (b"trace-bin", b"AAEC"),
            (b"short-bin", b"/w"),
            (b"many-bin", b"AA==,/w=="),
            (b"bad-bin", b"?"),
            (b"odd", b"\xff"),
        )
    )
    assert head.metadata() == [
        ("authorization", "Bearer t"),
        ("trace-bin", b"\x00\x01\x02"),
        ("short-bin", b"\xff"),
        ("many-bin", b"\x00"),
        ("many-bin", b"\xff"),
        ("odd", "\N{REPLACEMENT CHARACTER}"),
    ]


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_request_is_read(server: Server, encoding: str, compress: "type[bytes]") -> None:
    response = await call(server, grpc_message(compress(REQUEST), flags=1), grpc_encoding=encoding)
    assert response.headers["grpc-status"] == OK


async def test_a_message_that_is_not_marked_as_compressed_is_not(server: Server) -> None:
    assert (await call(server, grpc_message(REQUEST), grpc_encoding="gzip")).headers["grpc-status"] == OK


async def test_an_unknown_compression_is_refused_with_those_that_are_known(server: Server) -> None:
    response = await call(server, grpc_message(REQUEST, flags=1), grpc_encoding="snappy")
    assert response.headers["grpc-status"] == UNIMPLEMENTED
    assert response.headers["grpc-accept-encoding"] == "identity, deflate, gzip"


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
async def test_a_message_that_can_not_be_decompressed_is_refused(server: Server, encoding: str) -> None:
    response = await call(server, grpc_message(REQUEST, flags=1), grpc_encoding=encoding)
    assert response.headers["grpc-status"] == INVALID


async def test_gzip_data_that_are_cut_off_are_refused(server: Server) -> None:
    response = await call(server, grpc_message(gzip.compress(REQUEST)[:-9], flags=1), grpc_encoding="gzip")
    assert response.headers["grpc-status"] == INVALID
    assert "in the middle" in response.headers["grpc-message"]


async def test_a_message_that_decompresses_above_the_limit_is_refused(start_server: StartServer) -> None:
    server = await start_server(max_images_per_request=1)
    response = await call(server, grpc_message(gzip.compress(bytes(5 << 20)), flags=1), grpc_encoding="gzip")
    assert response.headers["grpc-status"] == BUSY
    assert "once decompressed" in response.headers["grpc-message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0\0", grpc_message(REQUEST)[:-1], grpc_message(REQUEST) * 2, grpc_message(REQUEST) + b"\0"],
    ids=["no message", "part of a prefix", "part of a message", "two messages", "a byte too many"],
)
async def test_a_unary_call_has_exactly_one_message(server: Server, body: bytes) -> None:
    response = await call(server, body)
    assert response.headers["grpc-status"] == INVALID
    count = len(body) if len(body) < 5 else len(body) - 5
    assert response.headers["grpc-message"].startswith(f"the request {'is' if len(body) < 5 else 'has'} {count} bytes")
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="invalid") == 1


async def test_an_answer_stops_a_caller_that_still_sends(server: Server) -> None:
    async with http2_client(server.grpc_port) as client:
        _, response = client.send(f"/{digits.NAME}/NoSuchMethod", grpc_message(REQUEST), ends=False)
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
    assert response.headers["grpc-status"] == UNIMPLEMENTED
    assert response.reset == NO_ERROR


@pytest.mark.parametrize("content_type", ["text/plain", "application/grpc+thrift", "application/connect+proto", ""])
async def test_a_media_type_of_no_protocol_is_refused(server: Server, content_type: str) -> None:
    response = await call(server, grpc_message(REQUEST), content_type=content_type)
    assert response.headers[":status"] == "415"
    assert "application/grpc, " in response.headers["accept-post"]


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc; charset=utf-8", "Application/gRPC"])
async def test_a_media_type_may_have_parameters_and_capitals(server: Server, content_type: str) -> None:
    response = await call(server, grpc_message(REQUEST), content_type=content_type)
    assert response.headers["grpc-status"] == OK


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "DELETE"])
async def test_another_method_than_post_is_refused(server: Server, method: str) -> None:
    async with http2_client(server.grpc_port) as client:
        response = await client.call(RECOGNIZE, method=method)
    assert (response.headers[":status"], response.headers["allow"]) == ("405", "POST")


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"POST /x HTTP/1.0"])
async def test_a_client_of_http_1_learns_what_the_port_speaks(server: Server, request_line: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(request_line + b"\r\nhost: digits\r\n\r\n")
    async with asyncio.timeout(TIMEOUT):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert b"--http2-prior-knowledge" in answer


async def test_a_connection_sends_without_waiting_for_acknowledgements(server: Server) -> None:
    front: Any = server._front
    async with http2_client(server.grpc_port) as client:
        await client.call(RECOGNIZE, grpc_message(REQUEST))
        accepted = [connection._transport.get_extra_info("socket") for connection in front._connections]
        assert [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in accepted] == [1]
