"""Each bound on what a client may hold: who reaches it loses, the others are answered, and the metric counts it."""

import asyncio
import gzip
import struct
import zlib
from contextlib import AsyncExitStack
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api import digits
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from tests.support import http2_client, http2_wire
from tests.support.calls import TIMEOUT
from tests.support.http2_checks import assert_answers, assert_closes, image_message
from tests.support.http2_client import (
    END_HEADERS,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    grpc_message,
    header_block,
    read_frame,
)
from tests.support.metrics import until, value
from tests.support.models import GatedModel
from tests.support.servers import StartServer

RECOGNIZE = f"/{digits.NAME}/Recognize"
BATCH = f"/{digits.NAME}/RecognizeBatch"
REFUSED_STREAM = 7  # an error code of HTTP/2
BUSY = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])


@pytest.fixture
def front() -> str:
    return "http2"


async def reached(server: Server, limit: str) -> None:
    """Waits until the metric shows that a client has reached a limit."""
    await until(server.metrics.registry, "digits_limits_reached_total", 1, limit=limit)


async def test_a_call_above_the_limit_of_its_connection_is_refused(start_server: StartServer) -> None:
    server = await start_server(max_calls_per_connection=3)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    block = header_block(RECOGNIZE)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    writer.write(b"".join(frame(HEADERS, END_HEADERS, stream, block) for stream in (1, 3, 5, 7)))
    async with asyncio.timeout(TIMEOUT):
        while (received := await read_frame(reader))[0] != RST_STREAM:
            pass
    assert received == (RST_STREAM, 0, 7, struct.pack(">I", REFUSED_STREAM))
    writer.close()


async def test_a_full_worker_gives_room_by_the_client_with_most_calls(start_server: StartServer) -> None:
    server = await start_server(max_open_calls=20)
    async with http2_client.http2_client(server.grpc_port) as hoarder:
        begun = [hoarder.send(RECOGNIZE, ends=False)[1] for _ in range(20)]
        polite = 0
        async with asyncio.timeout(TIMEOUT):
            while not begun[0].ended.is_set():
                await assert_answers(server)
                polite += 1
        assert begun[0].headers["grpc-status"] == BUSY
        assert sum(response.ended.is_set() for response in begun) <= polite
    assert value(server.metrics.registry, "digits_limits_reached_total", limit="calls") >= 1


async def test_many_calls_that_come_at_once_find_room_in_several_connections(start_server: StartServer) -> None:
    server = await start_server(max_open_calls=10)
    async with AsyncExitStack() as stack:
        for count in (3, 3, 2, 2):
            client = http2_client.http2_client(server.grpc_port, local_address=("127.0.0.2", 0))
            hoarder = await stack.enter_async_context(client)
            for _ in range(count):
                hoarder.send(RECOGNIZE, ends=False)
        await until(server.metrics.registry, "digits_open_connections", 4)
        polite = await stack.enter_async_context(http2_wire.wire(server.grpc_port))
        streams = range(1, 10, 2)
        polite.send(b"".join(http2_wire.call(stream) for stream in streams))
        await polite.until(lambda: all(polite.has_ended(stream) for stream in streams))
        assert [polite.data(stream) for stream in streams] == [http2_wire.ANSWER] * len(streams)


async def test_calls_that_run_are_kept_and_a_new_one_is_refused(start_server: StartServer, gated: GatedModel) -> None:
    server = await start_server(gated, max_open_calls=2, instances=1)
    async with http2_client.http2_client(server.grpc_port) as client:
        running = [client.send(RECOGNIZE, image_message())[1] for _ in range(2)]
        await until(server.metrics.registry, "digits_in_flight_requests", 2)
        refused = await client.call(RECOGNIZE, image_message())
        assert refused.headers["grpc-status"] == BUSY
        assert refused.headers["grpc-message"] == "2 calls are open, which is the limit"
        gated.open()
        for response in running:
            async with asyncio.timeout(TIMEOUT):
                await response.ended.wait()
            assert response.headers["grpc-status"] == "0"


async def test_a_connection_above_its_networks_limit_replaces_the_longest_idle(start_server: StartServer) -> None:
    server = await start_server(max_connections_per_peer=2)
    async with http2_client.http2_client(server.grpc_port) as oldest, http2_client.http2_client(server.grpc_port) as other:
        for client in (oldest, other, oldest):
            await client.call(RECOGNIZE, image_message())
        await assert_answers(server)
        async with asyncio.timeout(TIMEOUT):
            await other.closed.wait()
        assert other.goaways == [0]
        assert (await oldest.call(RECOGNIZE, image_message())).headers["grpc-status"] == "0"
    await reached(server, "connections_per_peer")


async def test_a_connection_above_its_networks_limit_is_closed_if_all_have_calls(start_server: StartServer) -> None:
    server = await start_server(max_connections_per_peer=1)
    async with http2_client.http2_client(server.grpc_port) as busy:
        stream_id, response = busy.send(f"/{digits.NAME}/RecognizeStream", ends=False)
        await until(server.metrics.registry, "digits_open_streams", 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == b""
        writer.close()
        busy.send_data(stream_id, b"", ends=True)
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
        assert response.headers["grpc-status"] == "0"
    await until(server.metrics.registry, "digits_open_connections", 0)
    await assert_answers(server)


async def test_a_full_worker_gives_room_by_the_network_with_most_connections(start_server: StartServer) -> None:
    server = await start_server(max_connections=3)
    hoarder = [await asyncio.open_connection("127.0.0.1", server.grpc_port) for _ in range(2)]
    async with http2_client.http2_client(server.grpc_port, local_address=("127.0.0.2", 0)) as polite:
        assert (await polite.call(RECOGNIZE, image_message())).headers["grpc-status"] == "0"
        hoarder.append(await asyncio.open_connection("127.0.0.1", server.grpc_port))
        await assert_closes(hoarder[0][0])
        async with http2_client.http2_client(server.grpc_port, local_address=("127.0.0.3", 0)) as newcomer:
            await assert_closes(hoarder[1][0])
            for client in (polite, newcomer):
                assert (await client.call(RECOGNIZE, image_message())).headers["grpc-status"] == "0"
    assert value(server.metrics.registry, "digits_limits_reached_total", limit="connections") == 2
    for _, writer in hoarder:
        writer.close()


@pytest.mark.parametrize("first_bytes", [b"", PREFACE[:10]])
async def test_a_connection_that_sends_no_preface_is_closed(start_server: StartServer, first_bytes: bytes) -> None:
    server = await start_server(preface_seconds=0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(first_bytes)
    await assert_closes(reader)
    writer.close()
    await reached(server, "preface_time")


async def test_a_message_that_does_not_arrive_ends_its_call_only(start_server: StartServer) -> None:
    server = await start_server(message_seconds=0.5)
    async with http2_client.http2_client(server.grpc_port) as client:
        _, response = client.send(RECOGNIZE, image_message()[:100], ends=False)
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
        assert response.headers["grpc-status"] == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
        assert (await client.call(RECOGNIZE, image_message())).headers["grpc-status"] == "0"
    await reached(server, "message_time")


async def test_an_idle_connection_is_asked_to_leave_and_closed(start_server: StartServer) -> None:
    server = await start_server(idle_seconds=0.5)
    async with http2_client.http2_client(server.grpc_port) as client:
        async with asyncio.timeout(TIMEOUT):
            await client.closed.wait()
        assert client.goaways == [0]
    await reached(server, "idle_time")


async def test_an_open_stream_is_not_idle(start_server: StartServer) -> None:
    server = await start_server(idle_seconds=0.2, message_seconds=0.2)
    async with http2_client.http2_client(server.grpc_port) as client:
        stream_id, response = client.send(f"/{digits.NAME}/RecognizeStream", ends=False)
        await asyncio.sleep(2.5)  # longer than two sweeps
        request = pb.RecognizeStreamRequest(id=7, request=pb.RecognizeRequest(image=bytes(784)))
        client.send_data(stream_id, grpc_message(request.SerializeToString()), ends=True)
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
        assert response.headers["grpc-status"] == "0"


async def test_headers_above_the_limit_are_refused(start_server: StartServer) -> None:
    server = await start_server(max_header_bytes=2048)
    async with http2_client.http2_client(server.grpc_port) as client:
        response = await client.call(RECOGNIZE, image_message(), x_large="v" * 4000)
        assert response.headers["grpc-status"] == BUSY
        assert "this server takes 2048" in response.headers["grpc-message"]
        assert (await client.call(RECOGNIZE, image_message())).headers["grpc-status"] == "0"
    await reached(server, "header_bytes")


async def test_headers_that_hpack_expands_far_above_the_limit_close_the_connection(start_server: StartServer) -> None:
    server = await start_server(max_header_bytes=2048)
    large = b"\x40" + http2_client.literal(b"x-large", b"v" * 3900)[1:]  # indexed: one byte repeats it
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    block = header_block(RECOGNIZE) + large + b"\xbe" * 4000
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, block))
    await assert_closes(reader)
    writer.close()
    await reached(server, "http2")
    await assert_answers(server)


async def test_too_many_resets_close_the_connection(start_server: StartServer) -> None:
    server = await start_server(max_resets_per_second=20)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    block = header_block(RECOGNIZE)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    for stream in range(1, 200, 2):
        writer.write(frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
    await assert_closes(reader)
    writer.close()
    await reached(server, "resets")
    await assert_answers(server)


async def test_resets_over_many_connections_close_those_above_the_limit(start_server: StartServer) -> None:
    server = await start_server(max_resets_per_second=20)
    block = header_block(RECOGNIZE)
    resets = b"".join(
        frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
        for stream in range(1, 36, 2)  # 18, below the limit of a connection
    )
    opened = [await asyncio.open_connection("127.0.0.1", server.grpc_port) for _ in range(12)]
    for _, writer in opened:
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + resets)
    async with asyncio.timeout(TIMEOUT):
        while not value(server.metrics.registry, "digits_limits_reached_total", limit="resets"):
            await asyncio.sleep(0.01)
    for _, writer in opened:
        writer.close()
    await assert_answers(server)


async def test_requests_above_the_buffer_fail_for_the_client_with_most(start_server: StartServer) -> None:
    server = await start_server(max_request_buffer_bytes=1 << 20, max_images_per_request=500)
    async with http2_client.http2_client(server.grpc_port) as hoarder, http2_client.http2_client(server.grpc_port) as other:
        _, modest = other.send(RECOGNIZE, image_message()[:500], ends=False)
        part = grpc_message(bytes(4 << 20))[: 300 << 10]
        responses = [hoarder.send(BATCH, part, ends=False)[1] for _ in range(4)]
        async with asyncio.timeout(TIMEOUT):
            done, _ = await asyncio.wait(
                [asyncio.create_task(response.ended.wait()) for response in responses],
                return_when=asyncio.FIRST_COMPLETED,
            )
        assert done
        assert BUSY in [response.headers.get("grpc-status") for response in responses]
        assert not modest.ended.is_set()
    await reached(server, "request_bytes")


async def test_a_client_that_takes_no_answers_is_cut_off(start_server: StartServer) -> None:
    server = await start_server(answer_seconds=0.5)
    async with http2_client.http2_client(server.grpc_port, {4: 0}) as client:  # a window of 0 bytes
        client.send(RECOGNIZE, image_message())
        async with asyncio.timeout(TIMEOUT):
            await client.closed.wait()
    await reached(server, "answer_time")
    await until(server.metrics.registry, "digits_open_connections", 0)


async def test_answers_above_the_buffer_cost_the_client_with_most_its_connection(
    start_server: StartServer,
) -> None:
    server = await start_server(max_answer_buffer_bytes=1 << 20)
    images: NDArray[np.uint8] = np.zeros((10_000, 784), np.uint8)
    batch = grpc_message(pb.RecognizeBatchRequest(images=images.tobytes()).SerializeToString())
    async with (
        http2_client.http2_client(server.grpc_port, {4: 0}) as hoarder,
        http2_client.http2_client(server.grpc_port, {4: 0}) as other,
    ):
        other.send(RECOGNIZE, image_message())
        for _ in range(3):
            hoarder.send(BATCH, batch)
        async with asyncio.timeout(TIMEOUT):
            await hoarder.closed.wait()
        assert not other.closed.is_set()
    await reached(server, "answer_bytes")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_message_above_the_limit_is_refused(start_server: StartServer, encoding: str) -> None:
    server = await start_server(max_images_per_request=1)
    bomb = bytes(64 << 20)
    compressed = gzip.compress(bomb) if encoding == "gzip" else zlib.compress(bomb)
    async with http2_client.http2_client(server.grpc_port) as client:
        response = await client.call(BATCH, grpc_message(compressed, flags=1), grpc_encoding=encoding)
        assert response.headers["grpc-status"] == BUSY
        assert "once decompressed" in response.headers["grpc-message"]


async def test_a_client_that_answers_no_ping_is_cut_off(start_server: StartServer) -> None:
    server = await start_server(keepalive_seconds=0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.grpc_port)
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    await assert_closes(reader)
    writer.close()
    await reached(server, "keepalive")


async def test_a_client_that_answers_pings_stays(start_server: StartServer) -> None:
    server = await start_server(keepalive_seconds=0.5)
    async with http2_client.http2_client(server.grpc_port) as client:
        await asyncio.sleep(3)  # longer than two intervals and their sweeps
        assert (await client.call(RECOGNIZE, image_message())).headers["grpc-status"] == "0"


async def test_the_connections_of_a_stopping_server_get_goaway_and_keep_their_calls(
    start_server: StartServer, gated: GatedModel
) -> None:
    server: Any = await start_server(gated, instances=1)
    async with http2_client.http2_client(server.grpc_port) as client:
        _, response = client.send(RECOGNIZE, image_message())
        await until(server.metrics.registry, "digits_in_flight_requests", 1)
        stopping = asyncio.create_task(server.stop(drain_seconds=0, grace_seconds=TIMEOUT))
        async with asyncio.timeout(TIMEOUT):
            while len(client.goaways) < 2:
                await asyncio.sleep(0.01)
        gated.open()
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
            assert response.headers["grpc-status"] == "0"
            await client.closed.wait()
            await stopping
