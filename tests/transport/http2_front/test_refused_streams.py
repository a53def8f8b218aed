"""A stream that the front refuses leaves nothing: no task of its handler, no bytes in the counts, no window taken."""

import asyncio

import grpc
import pytest

from serving.api import digits
from serving.transport.http2_front import engine
from tests.support.calls import TIMEOUT
from tests.support.http2_client import ACK, DATA, RST_STREAM, SETTINGS, frame, grpc_message, http2_client
from tests.support.http2_wire import ANSWER, CANCEL, OPENING, REQUEST, WATCH, fields, headers, number, wire
from tests.support.metrics import until, value
from tests.support.servers import StartServer

STREAM = f"/{digits.NAME}/RecognizeStream"
FRAME_BYTES = 1 << 14


@pytest.fixture
def front() -> str:
    return "http2"


async def test_the_handler_of_a_stream_whose_message_is_late_ends(start_server: StartServer) -> None:
    server = await start_server(message_seconds=0.5)
    async with http2_client(server.grpc_port) as client:
        _, response = client.send(STREAM, grpc_message(bytes(784))[:100], ends=False)
        await until(server.metrics.registry, "digits_open_streams", 1)
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
        assert response.headers["grpc-status"] == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
        await until(server.metrics.registry, "digits_open_streams", 0)


async def test_the_handler_of_a_stream_refused_for_a_full_buffer_ends(start_server: StartServer) -> None:
    server = await start_server(max_request_buffer_bytes=1 << 20, max_images_per_request=500)
    part = grpc_message(bytes(3 << 20))[: 300 << 10]
    for _ in range(3):
        async with http2_client(server.grpc_port) as client:
            before = value(server.metrics.registry, "digits_limits_reached_total", limit="request_bytes")
            responses = [client.send(STREAM, part, ends=False)[1] for _ in range(4)]
            await until(server.metrics.registry, "digits_limits_reached_total", before + 1, limit="request_bytes")
            await until(server.metrics.registry, "digits_open_streams", 3)
            assert sum(response.ended.is_set() for response in responses) <= 1
        await until(server.metrics.registry, "digits_open_streams", 0)


async def test_requests_that_nobody_took_leave_the_window_of_the_connection(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_CONNECTION_WINDOW", 2 * engine.STREAM_WINDOW)
    server = await start_server()
    message = grpc_message(bytes(FRAME_BYTES - 5))
    async with wire(server.grpc_port, OPENING + frame(SETTINGS, ACK, 0)) as client:
        for stream in range(1, 21, 2):
            client.send(headers(stream, fields(path=WATCH)) + frame(DATA, 0, stream, REQUEST))
            await client.until(lambda stream=stream: client.data(stream) == ANSWER)  # type: ignore[misc]
            # Enough to fill the handler's queue, and half of the window.
            client.send(frame(DATA, 0, stream, message) * (engine.STREAM_WINDOW * 3 // 2 // FRAME_BYTES))
            await client.settle()
            client.send(frame(RST_STREAM, 0, stream, number(CANCEL)))
        await client.assert_answers()
        assert client.errors() == []
