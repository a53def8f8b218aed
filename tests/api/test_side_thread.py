"""The thread for long messages: clients take turns, and what nobody waits for is left out."""

import asyncio
import gzip
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from serving.api import digits, side_thread
from serving.api.side_thread import SideThread, ThreadBusy
from serving.call import Call
from serving.errors import Code, DeadlineExceeded, Stopping
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from serving.transport.http2_front.framing import COMPRESSED, frame
from tests.support.calls import TIMEOUT
from tests.support.digit_calls import connect, recognize_batch
from tests.support.http2_client import Response, http2_client
from tests.support.metrics import value
from tests.support.servers import StartServer

FLOODER, POLITE = (Call(peer=lambda host=host: f"ipv4:10.0.0.{host}:50000") for host in (1, 2))  # type: ignore[misc]
KIB = 1024
WORST = b"\x22\x00" * 65_537  # counting its fields takes the thread about as long as any message of this size


class Gate:
    """Holds the thread until the test opens it, and notes the work that comes then."""

    def __init__(self, thread: SideThread):
        self.done: list[str] = []
        self._thread = thread
        self._opened, self._reached = threading.Event(), threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def hold(self) -> None:
        """Has the thread wait."""

        def wait() -> None:
            self._reached.set()
            assert self._opened.wait(TIMEOUT)

        self._tasks.append(asyncio.create_task(self._thread.run(wait, 1, Call())))
        assert await asyncio.to_thread(self._reached.wait, TIMEOUT)

    def open(self) -> None:
        """Lets the thread go on."""
        self._opened.set()

    async def run(self, name: str, call: Call, size: int = 1, *, answer: bool = False) -> asyncio.Task[None]:
        """Queues work, which notes its name."""
        enter = self._thread.encode if answer else self._thread.run
        task = asyncio.create_task(enter(lambda: self.done.append(name), size, call))
        self._tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def end(self) -> list[BaseException | None]:
        """Opens the gate, and returns how the work ended that was queued."""
        self.open()
        async with asyncio.timeout(TIMEOUT):
            return (await asyncio.gather(*self._tasks, return_exceptions=True))[1:]


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    thread = SideThread()
    one = Gate(thread)
    await one.hold()
    yield one
    one.open()
    thread.close()


async def test_a_polite_message_is_next_however_many_of_another_client_wait(gate: Gate) -> None:
    for _ in range(50):
        await gate.run("flood", FLOODER, 129 * KIB)
    await gate.run("polite", POLITE, 900)
    await gate.run("polite batch", POLITE, 100 * KIB)
    await gate.end()
    assert gate.done.index("polite") <= 1
    assert gate.done.index("polite batch") <= 3


async def test_a_client_whose_small_messages_take_long_waits_for_its_turn(gate: Gate) -> None:
    def slow() -> None:
        gate.done.append("slow")
        time.sleep(0.02)

    flood = [asyncio.create_task(gate._thread.run(slow, 1, FLOODER)) for _ in range(5)]
    await asyncio.sleep(0)
    for _ in range(10):
        await gate.run("quick", POLITE)
    await gate.end()
    await asyncio.gather(*flood)
    assert gate.done.count("slow") == 5
    assert gate.done[:12].count("quick") == 10


async def test_work_is_left_out_whose_caller_has_gone_or_is_late(gate: Gate) -> None:
    gone = await gate.run("gone", POLITE)
    await gate.run("late", Call(deadline=time.monotonic() - 1))
    await gate.run("waits", POLITE)
    gone.cancel()
    outcomes = await gate.end()
    assert gate.done == ["waits"]
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, DeadlineExceeded, type(None)]


async def test_a_full_queue_takes_the_newest_message_of_the_client_with_most(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_thread, "_MAX_WAITING_KIB", 128)
    for name in ("1", "2", "3", "4", "5"):
        await gate.run(name, FLOODER, 32 * KIB)
    await gate.run("polite", POLITE)
    outcomes = await gate.end()
    assert sorted(gate.done) == ["1", "2", "3", "polite"]
    assert [str(outcome) for outcome in outcomes if isinstance(outcome, ThreadBusy)] == [
        "too many long messages wait to be read, and other clients have fewer",
        "long messages of 128 KiB wait to be read, which is the limit",
    ]


async def test_an_answer_is_never_refused(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_thread, "_MAX_WAITING_KIB", 32)
    await gate.run("request", FLOODER)
    for _ in range(3):
        await gate.run("answer", FLOODER, 64 * KIB, answer=True)
    await gate.run("polite", POLITE, 1)
    assert [type(outcome) for outcome in await gate.end()] == [type(None)] * 4 + [ThreadBusy]
    assert sorted(gate.done) == ["answer"] * 3 + ["request"]


async def test_what_waits_at_the_end_of_the_process_is_unavailable(gate: Gate) -> None:
    await gate.run("waits", POLITE)
    await gate.run("answer", POLITE, answer=True)
    gate._thread.close()
    assert [type(outcome) for outcome in await gate.end()] == [Stopping, Stopping]
    with pytest.raises(Stopping):
        await gate._thread.run(list, 1, POLITE)
    assert not gate.done


async def test_a_draining_thread_does_what_waits_and_refuses_more(gate: Gate) -> None:
    await gate.run("waits", POLITE)
    draining = asyncio.create_task(gate._thread.drain(TIMEOUT))
    await asyncio.sleep(0)
    with pytest.raises(Stopping):
        await gate._thread.run(list, 1, POLITE)
    await gate.run("answer", POLITE, answer=True)
    assert await gate.end() == [None, None]
    await draining
    assert sorted(gate.done) == ["answer", "waits"]


async def test_a_draining_thread_is_not_waited_for_without_end(gate: Gate) -> None:
    await asyncio.wait_for(gate._thread.drain(0.01), TIMEOUT)


async def test_a_long_message_that_waits_when_the_server_stops_is_answered(
    start_server: StartServer, crops: list[bytes]
) -> None:
    server = await start_server()
    gate = Gate(server.dispatcher.side_thread)
    await gate.hold()
    async with connect(server) as stub:
        answering = asyncio.ensure_future(recognize_batch(stub, crops=crops * 15))
        await until(lambda: value(server.metrics.registry, "digits_in_flight_requests"))
        stopping = asyncio.create_task(server.stop(drain_seconds=0, grace_seconds=TIMEOUT))
        await asyncio.sleep(0.1)
        assert not answering.done()
        gate.open()
        assert len((await answering).digits) == 300
        await stopping


async def test_a_long_request_of_a_stream_is_refused_alone_and_counted_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_thread, "_MAX_WAITING_KIB", 0)
    requests = [
        pb.RecognizeStreamRequest(id=7, request=pb.RecognizeRequest(crop=bytes(200 * KIB))),
        pb.RecognizeStreamRequest(id=8, request=pb.RecognizeRequest(image=bytes(784))),
    ]
    async with connect(server) as stub:
        answers = {answer.id: answer async for answer in stub.RecognizeStream(iter(requests), timeout=TIMEOUT)}
    assert answers[7].error.code == Code.RESOURCE_EXHAUSTED
    assert answers[8].answer.model_version
    assert value(server.metrics.registry, "digits_requests_total", code="RESOURCE_EXHAUSTED") == 1
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="too_busy") == 1


@pytest.mark.parametrize("front", ["http2"], indirect=True)
async def test_a_compressed_message_of_unknown_id_ends_its_stream_and_is_counted_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_thread, "_MAX_WAITING_KIB", 0)
    request = pb.RecognizeStreamRequest(id=7, request=pb.RecognizeRequest(image=bytes(784)))
    body = frame(gzip.compress(request.SerializeToString()), COMPRESSED)
    async with http2_client(server.grpc_port) as client:
        response = await client.call(f"/{digits.NAME}/RecognizeStream", body, grpc_encoding="gzip")
    assert response.headers["grpc-status"] == str(Code.RESOURCE_EXHAUSTED.value)
    assert value(server.metrics.registry, "digits_requests_total", code="RESOURCE_EXHAUSTED") == 1
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="too_busy") == 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_flood_of_long_messages_leaves_other_connections_their_turns(server: Server) -> None:
    path, count = f"/{digits.NAME}/RecognizeBatch", 60
    image = pb.RecognizeRequest(image=bytes(784)).SerializeToString()
    batch = pb.RecognizeBatchRequest(images=bytes(784 * 500)).SerializeToString()
    gate = Gate(server.dispatcher.side_thread)
    await gate.hold()
    async with http2_client(server.grpc_port) as flooder, http2_client(server.grpc_port) as polite:
        flood = [flooder.send(path, frame(WORST))[1] for _ in range(count)]
        await until(lambda: len(server.dispatcher.side_thread._requests) == count)
        calls: list[Response] = [
            polite.send(f"/{digits.NAME}/Recognize", frame(gzip.compress(image), COMPRESSED), grpc_encoding="gzip")[1],
            polite.send(path, frame(batch))[1],
        ]
        await asyncio.sleep(0.1)  # on the front grpcio, only one of the two waits for the thread
        gate.open()
        await until(lambda: all(call.ended.is_set() for call in calls))
        answered = sum(response.ended.is_set() for response in flood)
    assert [call.headers["grpc-status"] for call in calls] == ["0", "0"]
    assert answered < count // 4
    await until(lambda: not server.dispatcher.side_thread._requests)  # nobody waits for the rest


@pytest.mark.parametrize("front", ["http2"], indirect=True)
async def test_a_long_message_waits_for_the_thread_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run, sizes = SideThread.run, list[int]()

    async def noted(thread: SideThread, work: Callable[[], object], size: int, call: Call) -> object:
        sizes.append(size)
        return await run(thread, work, size, call)

    monkeypatch.setattr(SideThread, "run", noted)
    batch = pb.RecognizeBatchRequest(images=bytes(784 * 500)).SerializeToString()
    async with http2_client(server.grpc_port) as client:
        response = await client.call(f"/{digits.NAME}/RecognizeBatch", frame(batch))
    assert response.headers["grpc-status"] == "0"
    assert sizes == [len(batch)]
