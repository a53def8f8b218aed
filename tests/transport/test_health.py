import asyncio
import contextlib
import struct
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.api import digits
from serving.process.server import Server
from tests.support.calls import TIMEOUT, refused

QUESTION = health_pb2.HealthCheckRequest(service=digits.NAME)
SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_only_so_many_watches_are_open_at_once_and_a_check_is_always_answered(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(QUESTION, timeout=TIMEOUT) for _ in range(100)]
        answers = await asyncio.gather(*(watch.read() for watch in watches))
        assert {answer.status for answer in answers} == {SERVING}
        error = await refused(stub.Watch(QUESTION, timeout=TIMEOUT).read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "100 watches are open, which is the limit; call Check instead"
        assert (await stub.Check(QUESTION, timeout=TIMEOUT)).status == SERVING

        watches[0].cancel()
        async with asyncio.timeout(TIMEOUT):
            while True:  # until the server has heard of it
                another = stub.Watch(QUESTION, timeout=TIMEOUT)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert (await another.read()).status == SERVING
                    break
        error = await refused(stub.Watch(QUESTION, timeout=TIMEOUT).read())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, "one that ended makes room for one"


async def test_a_watcher_who_takes_nothing_keeps_neither_others_from_news_nor_the_server_from_ending(
    server: Server,
) -> None:
    fields = {b":method": b"POST", b":scheme": b"http", b":path": b"/grpc.health.v1.Health/Watch", b":authority": b"digits"}
    fields |= {b"te": b"trailers", b"content-type": b"application/grpc"}
    # Literal header fields, RFC 7541, 6.2.2: names and values by their lengths, neither indexed nor compressed.
    block = b"".join(bytes([0, len(key)]) + key + bytes([len(text)]) + text for key, text in fields.items())
    question = QUESTION.SerializeToString()
    no_window = struct.pack(">HI", 4, 0)  # SETTINGS_INITIAL_WINDOW_SIZE
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    writer.write(frame(4, 0, 0, no_window) + frame(1, 4, 1, block))
    writer.write(frame(0, 1, 1, struct.pack(">BI", 0, len(question)) + question))
    async with asyncio.timeout(TIMEOUT):
        await reader.readuntil(b"application/grpc")  # the answer's headers: what it says would follow
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(QUESTION, timeout=TIMEOUT)
        assert (await watch.read()).status == SERVING
        async with asyncio.timeout(TIMEOUT):
            await server.stop(drain_seconds=0, grace_seconds=1)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    writer.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2, RFC 9113, 4.1."""
    return len(payload).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + payload


async def test_a_service_that_is_not_there_is_not_found_by_a_check_and_unknown_to_a_watch(server: Server) -> None:
    question = health_pb2.HealthCheckRequest(service="letters")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await refused(stub.Check(question, timeout=TIMEOUT))).code() is grpc.StatusCode.NOT_FOUND
        answer = await stub.Watch(question, timeout=TIMEOUT).read()
        assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
