import asyncio
import contextlib
import struct
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api import digits
from serving.process.server import Server
from serving.transport import health
from tests.support.calls import TIMEOUT, refused

REQUEST = health_pb2.HealthCheckRequest(service=digits.NAME)
SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_watches_above_the_limit_are_refused_and_checks_are_answered(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(REQUEST, timeout=TIMEOUT) for _ in range(100)]
        answers = await asyncio.gather(*(watch.read() for watch in watches))
        assert {answer.status for answer in answers} == {SERVING}
        error = await refused(stub.Watch(REQUEST, timeout=TIMEOUT).read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "100 watches are open, which is the limit; call Check instead"
        assert (await stub.Check(REQUEST, timeout=TIMEOUT)).status == SERVING

        watches[0].cancel()
        async with asyncio.timeout(TIMEOUT):
            while True:  # until the server has noticed the cancellation
                another = stub.Watch(REQUEST, timeout=TIMEOUT)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert (await another.read()).status == SERVING
                    break
        error = await refused(stub.Watch(REQUEST, timeout=TIMEOUT).read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, "one ended watch makes room for one"


async def test_a_watch_that_is_not_read_delays_neither_others_nor_the_shutdown(server: Server) -> None:
    fields = {b":method": b"POST", b":scheme": b"http", b":path": b"/grpc.health.v1.Health/Watch", b":authority": b"digits"}
    fields |= {b"te": b"trailers", b"content-type": b"application/grpc"}
    # Literal header fields, neither indexed nor compressed. Source: RFC 7541, 6.2.2.
    block = b"".join(bytes([0, len(key)]) + key + bytes([len(text)]) + text for key, text in fields.items())
    message = REQUEST.SerializeToString()
    no_window = struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    writer.write(frame(4, 0, 0, no_window) + frame(1, 4, 1, block))
    writer.write(frame(0, 1, 1, struct.pack(">BI", 0, len(message)) + message))
    async with asyncio.timeout(TIMEOUT):
        while (await read_frame(reader))[0] != 1:  # the response headers; the status would follow
            pass
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(REQUEST, timeout=TIMEOUT)
        assert (await watch.read()).status == SERVING
        async with asyncio.timeout(TIMEOUT):
            await server.stop(drain_seconds=0, grace_seconds=1)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    writer.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Encodes a frame of HTTP/2. Source: RFC 9113, 4.1."""
    return len(payload).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Reads a frame of HTTP/2; returns its type and its payload."""
    head = await reader.readexactly(9)
    return head[3], await reader.readexactly(int.from_bytes(head[:3]))


async def test_an_unknown_service_is_not_found_by_check_and_unknown_to_watch(server: Server) -> None:
    request = health_pb2.HealthCheckRequest(service="letters")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await refused(stub.Check(request, timeout=TIMEOUT))).code() is grpc.StatusCode.NOT_FOUND
        answer = await stub.Watch(request, timeout=TIMEOUT).read()
        assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def test_bytes_that_are_no_request_are_refused_by_check_and_watch(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check: Any = channel.unary_unary(f"/{health.NAME}/Check")
        watch: Any = channel.unary_stream(f"/{health.NAME}/Watch")
        for call in (check(b"\xff", timeout=TIMEOUT), watch(b"\xff", timeout=TIMEOUT).read()):
            error = await refused(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details() == "the request is not a grpc.health.v1.HealthCheckRequest message"
        assert await check(b"", timeout=TIMEOUT) == health_pb2.HealthCheckResponse(status=SERVING).SerializeToString()


async def test_an_unexpected_exception_tells_callers_nothing_and_is_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: bytes) -> str:
        raise ValueError("a secret of /the/server")

    monkeypatch.setattr(health, "_parse", fail)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check: Any = channel.unary_unary(f"/{health.NAME}/Check")
        watch: Any = channel.unary_stream(f"/{health.NAME}/Watch")
        for call in (check(b"", timeout=TIMEOUT), watch(b"", timeout=TIMEOUT).read()):
            error = await refused(call)
            assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    logged = {record.getMessage() for record in caplog.records if record.levelname == "ERROR"}
    assert logged == {"the handler of Check failed", "the handler of Watch failed"}
