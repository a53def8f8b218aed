"""RFC 9113, the frames of the connection in chapter 6: SETTINGS, PING, GOAWAY, WINDOW_UPDATE."""

import pytest

from serving.process.server import Server
from tests.support.http2_client import ACK, GOAWAY, PING, SETTINGS, WINDOW_UPDATE, frame
from tests.support.http2_wire import (
    ANSWER,
    FLOW_CONTROL_ERROR,
    PROTOCOL_ERROR,
    Answered,
    Case,
    Fatal,
    Ignored,
    call,
    check,
    end,
    headers,
    number,
    settings,
    wire,
)
from tests.support.metrics import value

pytestmark = pytest.mark.asyncio(loop_scope="module")

TABLE, PUSH, STREAMS, WINDOW, FRAME, HEADER_LIST = range(1, 7)
MOST = (1 << 31) - 1

CASES = [
    Case("6.5", "SETTINGS on a stream", headers(1) + frame(SETTINGS, 0, 1), Fatal(PROTOCOL_ERROR)),
    Case("6.5", "SETTINGS on an idle stream", frame(SETTINGS, 0, 7), Fatal(PROTOCOL_ERROR)),
    Case(
        "6.5",
        "an ACK of SETTINGS that was not asked for",
        frame(SETTINGS, ACK, 0) * 3 + call(1),
        Fatal(PROTOCOL_ERROR),
        "the RFC says nothing; the library takes it for a breach",
    ),
    Case("6.5.2", "a header table of no size", settings((TABLE, 0)) + call(1), Answered()),
    Case("6.5.2", "a header table of 4 GB", settings((TABLE, (1 << 32) - 1)) + call(1), Answered()),
    Case("6.5.2", "push switched off", settings((PUSH, 0)) + call(1), Answered()),
    Case("6.5.2", "push switched on", settings((PUSH, 1)) + call(1), Answered()),
    Case("6.5.2", "push of 2", settings((PUSH, 2)), Fatal(PROTOCOL_ERROR)),
    Case("6.5.2", "no concurrent streams of ours", settings((STREAMS, 0)) + call(1), Answered()),
    Case("6.5.2", "the largest window", settings((WINDOW, MOST)) + call(1), Answered()),
    Case("6.5.2", "a window above 2^31 - 1", settings((WINDOW, MOST + 1)), Fatal(FLOW_CONTROL_ERROR)),
    Case("6.5.2", "frames of the least size", settings((FRAME, 1 << 14)) + call(1), Answered()),
    Case("6.5.2", "frames of the largest size", settings((FRAME, (1 << 24) - 1)) + call(1), Answered()),
    Case("6.5.2", "frames below the least size", settings((FRAME, (1 << 14) - 1)), Fatal(PROTOCOL_ERROR)),
    Case("6.5.2", "frames above the largest size", settings((FRAME, 1 << 24)), Fatal(PROTOCOL_ERROR)),
    Case("6.5.2", "a limit of header lists", settings((HEADER_LIST, 100)) + call(1), Answered()),
    Case("6.5.2", "an unknown setting", settings((0xFF, 1)) + call(1), Answered()),
    Case("6.5.3", "a setting given twice", settings((WINDOW, 0), (WINDOW, 65_535)) + call(1), Answered()),
    Case("6.5.3", "a wrong value after a right one", settings((PUSH, 0), (PUSH, 2)), Fatal(PROTOCOL_ERROR)),
    Case("6.7", "PING on a stream", headers(1) + frame(PING, 0, 1, bytes(8)), Fatal(PROTOCOL_ERROR)),
    Case("6.7", "an ACK of a PING that was not sent", frame(PING, ACK, 0, bytes(8)) + call(1), Answered()),
    Case("6.8", "GOAWAY on a stream", headers(1) + frame(GOAWAY, 0, 1, bytes(8)), Fatal(PROTOCOL_ERROR)),
    Case("6.9", "an increment of 0 on the connection", frame(WINDOW_UPDATE, 0, 0, number(0)), Fatal(PROTOCOL_ERROR)),
    Case("6.9", "the reserved bit of an increment", frame(WINDOW_UPDATE, 0, 0, number(1 << 31 | 5)) + call(1), Answered()),
    Case(
        "6.9.1",
        "a window of the connection above 2^31 - 1",
        frame(WINDOW_UPDATE, 0, 0, number(MOST)),
        Fatal(FLOW_CONTROL_ERROR),
    ),
    Case(
        "6.9.1",
        "the largest window of the connection",
        frame(WINDOW_UPDATE, 0, 0, number(MOST - 65_535)) + call(1),
        Answered(),
    ),
    Case(
        "6.9.2",
        "SETTINGS that take a stream's window above 2^31 - 1",
        headers(1) + frame(WINDOW_UPDATE, 0, 1, number(MOST - 65_535)) + settings((WINDOW, 65_536)),
        Fatal(FLOW_CONTROL_ERROR),
    ),
    Case(
        "6.9.2", "SETTINGS on an idle connection change no window of the connection", settings((WINDOW, MOST)) * 3, Ignored()
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_connections_are_answered_as_the_rfc_says(wire_server: Server, case: Case) -> None:
    await check(wire_server.grpc_port, case)


async def test_settings_are_acknowledged_once_each(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port) as client:
        client.send(settings((PUSH, 0)) + settings())
        await client.settle()
        assert client.frames.count((SETTINGS, ACK, 0, b"")) == 3  # the opening's too


async def test_ping_is_answered_with_its_own_payload(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port) as client:
        client.send(frame(PING, 0, 0, b"8 bytes!"))
        await client.until(lambda: (PING, ACK, 0, b"8 bytes!") in client.frames)
        assert not client.ended


async def test_ack_of_ping_is_not_answered(wire_server: Server) -> None:
    async with wire(wire_server.grpc_port) as client:
        client.send(frame(PING, ACK, 0, b"8 bytes!"))
        await client.settle()
        assert (PING, ACK, 0, b"8 bytes!") not in client.frames


@pytest.mark.parametrize("payload", [bytes(8), number(0) + number(0xFFFF) + b"bye"])
async def test_calls_of_a_client_that_says_goaway_are_answered(wire_server: Server, payload: bytes) -> None:
    async with wire(wire_server.grpc_port) as client:
        client.send(headers(1) + headers(3) + frame(GOAWAY, 0, 0, payload) + end(3) + end(1))
        await client.until(lambda: False)  # the server closes once it has answered them
        assert client.data(1) == client.data(3) == ANSWER
        assert client.errors() == []


async def test_a_breach_of_the_protocol_is_counted_and_an_orderly_end_is_not(wire_server: Server) -> None:
    async def count_after(data: bytes) -> float:
        async with wire(wire_server.grpc_port) as client:
            client.send(data)
            await client.until(lambda: False)
        return value(wire_server.metrics.registry, "digits_limits_reached_total", limit="http2")

    before = await count_after(frame(GOAWAY, 0, 0, number(0) + number(PROTOCOL_ERROR)))
    assert await count_after(frame(GOAWAY, 0, 0, number(0) + number(0))) == before
    assert await count_after(settings((PUSH, 2))) == before + 1
    assert await count_after(frame(GOAWAY, 0, 0, number(0) + number(PROTOCOL_ERROR))) == before + 1
