"""What a caller may keep open: a request or stream that goes nowhere ends, and leaves nothing behind."""

import asyncio
import contextlib
import gc
import struct
from typing import Any

import pytest

from serving.api import digits
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from serving.transport.http2_front.unary_exchange import UnaryExchange
from tests.support.calls import TIMEOUT
from tests.support.event_loop import turns
from tests.support.http2_checks import assert_answers, assert_closes, image_message
from tests.support.http2_client import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    grpc_message,
    header_block,
    http2_client,
    read_frame,
)
from tests.support.metrics import until
from tests.support.servers import StartServer
from tests.support.ways import start_lone

RECOGNIZE = f"/{digits.NAME}/Recognize"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
NO_WINDOW = {4: 0}  # SETTINGS_INITIAL_WINDOW_SIZE


@pytest.fixture
def front() -> str:
    return "http2"


async def test_a_watch_without_a_message_ends_and_frees_its_place(start_server: StartServer) -> None:
    server = await start_server(message_seconds=0.5)
    async with http2_client(server.grpc_port) as client:
        watches = [client.send(WATCH, ends=False)[1] for _ in range(100)]
        for watch in watches:
            async with asyncio.timeout(TIMEOUT):
                await watch.ended.wait()
        _, watch = client.send(WATCH, grpc_message(b""))
        async with asyncio.timeout(TIMEOUT):
            while not watch.body:
                await asyncio.sleep(0.01)


async def test_a_refused_request_is_not_kept_while_its_caller_takes_no_answer(start_server: StartServer) -> None:
    server = await start_server()
    async with http2_client(server.grpc_port, NO_WINDOW) as client:
        client.send(CHECK, bytes(1 << 20), content_type="application/proto")
        front: Any = server._front
        async with asyncio.timeout(TIMEOUT):
            while not (exchanges := [one for open_ in front._connections for one in open_.exchanges.values()]):
                await asyncio.sleep(0.01)
            while not exchanges[0].done:
                await asyncio.sleep(0.01)
        assert not exchanges[0]._body
        assert exchanges[0].held == 0


async def test_a_health_check_of_the_size_of_an_image_batch_is_refused(start_server: StartServer) -> None:
    server = await start_server()
    async with http2_client(server.grpc_port) as client:
        response = await client.call(CHECK, grpc_message(bytes(1 << 17)))
        assert response.headers["grpc-status"] == "8"
        assert "65536" in response.headers["grpc-message"]


async def test_resets_and_a_goaway_in_one_read_leave_no_traceback(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(max_resets_per_second=5)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    calls = b"".join(
        frame(HEADERS, END_HEADERS, stream, header_block(RECOGNIZE)) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        for stream in range(1, 41, 2)
    )
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + calls + frame(GOAWAY, 0, 0, bytes(8)))
    await assert_closes(reader)
    writer.close()
    await assert_answers(server)
    assert not caplog.records


async def test_pings_are_no_progress_of_a_client_that_takes_no_answer(start_server: StartServer) -> None:
    server = await start_server(answer_seconds=0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    writer.write(frame(HEADERS, END_HEADERS, 1, header_block(RECOGNIZE)) + frame(DATA, END_STREAM, 1, image_message()))
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(TIMEOUT):
            while not reader.at_eof():
                writer.write(frame(PING, 0, 0, bytes(8)))
                await writer.drain()
                await reader.read(100)
                await asyncio.sleep(0.05)
    writer.close()
    await until(server.metrics.registry, "digits_limits_reached_total", 1, limit="answer_time")


async def test_a_call_cancelled_with_its_request_is_freed_without_garbage_collection(server: Server) -> None:
    batch = pb.RecognizeBatchRequest(images=bytes(10 * 784)).SerializeToString()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    call = frame(HEADERS, END_HEADERS, 1, header_block(f"/{digits.NAME}/RecognizeBatch"))
    call += frame(DATA, END_STREAM, 1, grpc_message(batch)) + frame(RST_STREAM, 0, 1, struct.pack(">I", 8))
    gc.collect()
    gc.disable()
    try:
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + call + frame(PING, 0, 0, bytes(8)))
        async with asyncio.timeout(TIMEOUT):
            while (await read_frame(reader))[0] != PING:
                pass
        await turns(3)
        assert not [kept for kept in gc.get_objects() if isinstance(kept, UnaryExchange)]
    finally:
        gc.enable()
        writer.close()


async def test_a_stream_that_ends_while_a_lone_image_of_its_read_is_answered_is_forgotten(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_lone(start_server, monkeypatch)
    front: Any = server._front
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    calls = frame(HEADERS, END_HEADERS, 1, header_block(RECOGNIZE)) + frame(DATA, END_STREAM, 1, image_message())
    for stream in range(3, 21, 2):  # more data than announced, so libnghttp2 resets the stream
        calls += frame(HEADERS, END_HEADERS, stream, header_block(RECOGNIZE, content_length="1"))
        calls += frame(DATA, 0, stream, bytes(2))
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + calls + frame(PING, 0, 0, bytes(8)))
    async with asyncio.timeout(TIMEOUT):
        ended: set[int] = set()
        while not ended >= {1, *range(3, 21, 2)}:
            kind, flags, stream, _ = await read_frame(reader)
            if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                ended.add(stream)
    await turns(3)
    assert front.open_calls == 0
    writer.close()
