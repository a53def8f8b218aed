"""Streams and backpressure without a network: requests come from a queue, and answers go to a list."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serving.api.dispatch import Dispatcher
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import RequestError, Stopping, TooBusy
from serving.telemetry.metrics import Metrics
from serving.transport.stream import Streams
from tests.support.calls import TIMEOUT
from tests.support.event_loop import turns
from tests.support.metrics import until, value

EchoMethod = Method[bytes, bytes]


class Caller:
    """One caller of a stream.

    Attributes:
        requests: requests to send; None half-closes the stream.
        read: number of requests that the server has read.
        answers: answers that the server has written.
        room: set while the caller takes answers.
    """

    def __init__(self, *requests: bytes | None):
        self.requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        for request in requests:
            self.requests.put_nowait(request)
        self.read = 0
        self.answers: list[bytes] = []
        self.room = asyncio.Event()
        self.room.set()

    async def send(self) -> AsyncIterator[bytes]:
        while (request := await self.requests.get()) is not None:
            self.read += 1
            yield request

    async def take(self, answer: bytes) -> None:
        await self.room.wait()
        self.answers.append(answer)


class EchoServer:
    """Streams with a method that echoes each request once its gate opens.

    Attributes:
        gates: by request; a request without a gate is echoed at once.
    """

    def __init__(self, *, max_streams: int = 10, max_in_flight: int = 10, max_bytes: int = 1 << 30):
        self.metrics = Metrics()
        self.gates: dict[bytes, asyncio.Event] = {}
        dispatcher = Dispatcher(self.metrics, authenticator=None, tracing=None)
        self.streams = Streams(
            dispatcher, self.metrics, max_streams=max_streams, max_in_flight=max_in_flight, max_bytes=max_bytes
        )

    async def echo(self, request: bytes, call: Call) -> bytes:
        if request in self.gates:
            await self.gates[request].wait()
        return request

    def open(self, caller: Caller, *, ordered: bool = False, peer: str = "") -> asyncio.Task[None]:
        method = EchoMethod(
            "text.v1.Text", "Echo", "text.v1.EchoRequest", bytes, self.echo, bytes, None, refuse=refuse, ordered=ordered
        )
        return asyncio.create_task(self.streams.run(method, caller.send(), caller.take, Call(peer=lambda: peer)))


def refuse(encoded: bytes, error: RequestError) -> bytes:
    return str(error).encode()


async def test_a_stream_above_the_limit_is_refused_until_another_ends() -> None:
    server, first = EchoServer(max_streams=1), Caller()
    opened = server.open(first)
    await until(server.metrics.registry, "digits_open_streams", 1)
    with pytest.raises(TooBusy, match="1 streams are open, which is the limit"):
        await server.open(Caller())
    assert value(server.metrics.registry, "digits_requests_total", method="Echo", code="RESOURCE_EXHAUSTED") == 1
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="too_busy") == 1
    first.requests.put_nowait(None)
    await asyncio.wait_for(opened, TIMEOUT)
    assert value(server.metrics.registry, "digits_open_streams") == 0
    third = Caller(b"a", None)
    await asyncio.wait_for(server.open(third), TIMEOUT)
    assert third.answers == [b"a"]


@pytest.mark.parametrize(("ordered", "answers"), [(False, [b"b", b"a"]), (True, [b"a", b"b"])])
async def test_answers_go_out_as_they_are_ready_unless_the_method_is_ordered(ordered: bool, answers: list[bytes]) -> None:
    server, caller = EchoServer(), Caller(b"a", b"b", None)
    server.gates[b"a"] = asyncio.Event()
    stream = server.open(caller, ordered=ordered)
    await until(server.metrics.registry, "digits_requests_total", 1)
    await turns(10)
    assert caller.answers == ([] if ordered else [b"b"])
    server.gates[b"a"].set()
    await asyncio.wait_for(stream, TIMEOUT)
    assert caller.answers == answers


async def test_a_caller_that_takes_no_answers_is_read_no_further() -> None:
    server, caller = EchoServer(max_in_flight=3), Caller(*[b"a"] * 100, None)
    caller.room.clear()
    stream = server.open(caller)
    await until(server.metrics.registry, "digits_requests_total", 3)
    await turns(100)
    assert caller.read == 4, "three are answered, and the fourth waits for a slot"
    caller.room.set()
    await asyncio.wait_for(stream, TIMEOUT)
    assert len(caller.answers) == 100


async def test_a_stream_of_large_requests_is_read_no_further_while_their_answers_wait() -> None:
    server, caller = EchoServer(max_in_flight=100), Caller(*[bytes(1 << 20)] * 20, None)
    caller.room.clear()
    stream = server.open(caller)
    await turns(100)
    assert caller.read == 5, "4 MiB wait for the caller, and one request for room"
    caller.room.set()
    await asyncio.wait_for(stream, TIMEOUT)
    assert len(caller.answers) == 20


async def test_a_request_above_the_bytes_of_a_stream_is_answered_alone() -> None:
    server, caller = EchoServer(), Caller(*[bytes(5 << 20)] * 3, None)
    await asyncio.wait_for(server.open(caller), TIMEOUT)
    assert len(caller.answers) == 3


async def test_above_the_bytes_of_all_streams_the_caller_with_most_loses_one() -> None:
    server = EchoServer(max_bytes=5 << 20)
    honest = Caller(bytes(2 << 20))
    hoarders = [Caller(bytes(1 << 20)) for _ in range(5)]
    for caller in (honest, *hoarders):
        caller.room.clear()
    patient = server.open(honest, peer="ipv4:10.0.0.2:1")
    await turns(10)
    streams = [server.open(caller, peer=f"ipv4:10.0.0.1:{port}") for port, caller in enumerate(hoarders)]
    await turns(20)
    errors = [stream.exception() for stream in streams if stream.done()]
    assert [type(error) for error in errors] == [TooBusy, TooBusy]
    honest.room.set()
    honest.requests.put_nowait(None)
    await asyncio.wait_for(patient, TIMEOUT)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


async def test_stopping_answers_the_requests_read_so_far_and_ends_the_stream() -> None:
    server, caller = EchoServer(), Caller(b"a", b"b")
    server.gates[b"a"] = asyncio.Event()
    stream = server.open(caller)
    await until(server.metrics.registry, "digits_in_flight_requests", 1)
    server.streams.stop()
    caller.requests.put_nowait(b"c")
    await turns(10)
    server.gates[b"a"].set()
    with pytest.raises(Stopping):
        await asyncio.wait_for(stream, TIMEOUT)
    assert sorted(caller.answers) == [b"a", b"b"]
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="stopping") == 1


async def test_a_cancelled_stream_cancels_its_requests() -> None:
    server, caller = EchoServer(), Caller(b"a")
    server.gates[b"a"] = asyncio.Event()
    stream = server.open(caller)
    await until(server.metrics.registry, "digits_in_flight_requests", 1)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert value(server.metrics.registry, "digits_in_flight_requests") == 0
    assert value(server.metrics.registry, "digits_open_streams") == 0
