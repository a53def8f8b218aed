"""RFC 9113, 5.2 and 6.9: answers wait for the client's windows, and requests beyond our windows are refused."""

import pytest

from serving.api import digits
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from serving.transport.http2_front import engine
from tests.support.http2_client import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    grpc_message,
    http2_client,
)
from tests.support.http2_wire import (
    ANSWER,
    FLOW_CONTROL_ERROR,
    OPENING,
    REQUEST,
    WATCH,
    Wire,
    call,
    fields,
    headers,
    number,
    settings,
    wire,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

WINDOW = 4  # SETTINGS_INITIAL_WINDOW_SIZE
FRAME_BYTES = 1 << 14
FIRST_WINDOW = 65_535

# Our windows hold once the client has acknowledged our SETTINGS.
ACKNOWLEDGED = OPENING + frame(SETTINGS, ACK, 0)

IMAGES = 2500  # of a call whose answer is larger than a client's first window for the connection
BATCH = headers(1, fields(path=f"/{digits.NAME}/RecognizeBatch"))


def enlarge(size: int, stream: int = 1) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, number(size))


def batch() -> bytes:
    """Returns a call of many images in frames."""
    message = grpc_message(pb.RecognizeBatchRequest(images=bytes(784 * IMAGES)).SerializeToString())
    parts = [message[start : start + FRAME_BYTES] for start in range(0, len(message), FRAME_BYTES)]
    return BATCH + b"".join(frame(DATA, 0, 1, part) for part in parts) + frame(DATA, END_STREAM, 1)


async def comes(client: Wire, size: int) -> None:
    """Checks that a call's data comes up to `size` bytes, and no further."""
    await client.until(lambda: len(client.data()) >= size)
    await client.settle()
    assert len(client.data()) == size


async def test_an_answer_waits_for_a_window_of_its_stream(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port, OPENING + settings((WINDOW, 0))) as client:
        client.send(call(1))
        await client.until(lambda: any(kind == HEADERS for kind, *_ in client.frames))
        await comes(client, 0)
        client.send(enlarge(1))
        await comes(client, 1)
        client.send(enlarge(len(ANSWER)))
        await client.until(client.has_ended)
        assert client.data() == ANSWER


async def test_trailers_need_no_window(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port, OPENING + settings((WINDOW, len(ANSWER)))) as client:
        client.send(call(1))
        await client.until(client.has_ended)
        assert client.data() == ANSWER


async def test_settings_change_the_windows_of_open_streams(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port, OPENING + settings((WINDOW, 3))) as client:
        client.send(call(1))
        await comes(client, 3)
        client.send(settings((WINDOW, 5)))
        await comes(client, 5)
        client.send(settings((WINDOW, len(ANSWER))))
        await client.until(client.has_ended)
        assert client.data() == ANSWER


async def test_a_negative_window_has_to_be_made_up_for(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port, OPENING + settings((WINDOW, 3))) as client:
        client.send(call(1))
        await comes(client, 3)
        client.send(settings((WINDOW, 1)))  # the window is -2 now
        await comes(client, 3)
        client.send(enlarge(2))
        await comes(client, 3)
        client.send(enlarge(1))
        await comes(client, 4)
        client.send(enlarge(3))
        await client.until(client.has_ended)
        assert client.data() == ANSWER


async def test_the_last_of_several_windows_counts(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port, OPENING + settings((WINDOW, 100), (WINDOW, 2))) as client:
        client.send(call(1))
        await comes(client, 2)


async def test_an_answer_waits_for_the_window_of_the_connection(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port, ACKNOWLEDGED + settings((WINDOW, (1 << 31) - 1))) as client:
        client.send(batch())
        await comes(client, FIRST_WINDOW)
        client.send(enlarge(1, stream=0))
        await comes(client, FIRST_WINDOW + 1)
        assert max(len(payload) for kind, _, _, payload in client.frames if kind == DATA) <= FRAME_BYTES
        client.send(enlarge(1 << 30, stream=0))
        await client.until(client.has_ended)
        assert client.errors() == []


async def test_one_stream_without_a_window_holds_up_no_other(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port, OPENING + settings((WINDOW, 0))) as client:
        client.send(call(1) + call(3) + enlarge(len(ANSWER), stream=3))
        await client.until(lambda: client.has_ended(3))
        assert client.data(3) == ANSWER
        assert client.data(1) == b""


@pytest.mark.parametrize("message", [grpc_message(bytes(FRAME_BYTES - 5)), REQUEST], ids=["large", "empty"])
async def test_requests_beyond_the_window_end_the_connection(wire_server: Server, message: bytes) -> None:
    # A stream error would do; the library ends the connection.
    part = frame(DATA, 0, 1, message * (FRAME_BYTES // len(message)))
    async with wire(wire_server.grpc_port, ACKNOWLEDGED) as client:
        client.send(headers(1, fields(path=WATCH)) + frame(DATA, 0, 1, REQUEST))  # Watch takes one request
        await client.until(lambda: client.data() == ANSWER)
        client.send(part * (engine.STREAM_WINDOW // FRAME_BYTES))
        for _ in range(2 * engine.STREAM_WINDOW // FRAME_BYTES):
            if not client.ended:
                client.send(part)
                await client.settle()
        assert client.errors() == [(GOAWAY, 0, FLOW_CONTROL_ERROR)]
    async with wire(wire_server.grpc_port) as another:
        await another.assert_answers()


async def test_a_request_larger_than_all_windows_arrives(wire_server: Server) -> None:
    message = grpc_message(pb.RecognizeBatchRequest(images=bytes(784 * 4000)).SerializeToString())  # 3 MB
    async with http2_client(wire_server.grpc_port) as client:
        response = await client.call(f"/{digits.NAME}/RecognizeBatch", message)
        assert response.headers["grpc-status"] == "0"
