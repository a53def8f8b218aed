import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from serving.client import Decision, DigitClient, Recognition
from serving.loadtest import processes
from serving.loadtest.calls import GrpcTarget
from serving.loadtest.plan import Plan
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1 import digit_service_pb2_grpc as stubs
from serving.process.server import Server
from serving.samples.draw import draw
from tests.support.calls import TIMEOUT
from tests.support.metrics import value
from tests.support.servers import StartServer

SEVEN = draw(7)
CODE = grpc.StatusCode


def answered(server: Server) -> int:
    return int(value(server.metrics.registry, "digits_requests_total", code="OK"))


def address(*servers: Server) -> str:
    return "ipv4:" + ",".join(f"127.0.0.1:{server.grpc_port}" for server in servers)


async def call_on(client: DigitClient, over: asyncio.Event) -> Counter[str]:
    """Calls without a pause until `over` is set. Returns the number of calls by outcome."""
    ended: Counter[str] = Counter()
    while not over.is_set():
        try:
            answer = await asyncio.to_thread(client.recognize, SEVEN)
            ended["OK" if answer.digit == 7 else "WRONG"] += 1
        except grpc.RpcError as error:
            ended[error.code().name] += 1
    return ended


async def until_called(server: Server) -> None:
    """Waits until a server has answered ten more calls."""
    before = answered(server)
    async with asyncio.timeout(2 * TIMEOUT):
        while answered(server) < before + 10:
            await asyncio.sleep(0.01)


async def test_calls_go_to_all_servers_in_turn(start_server: StartServer) -> None:
    servers = [await start_server() for _ in range(3)]
    with DigitClient(address(*servers), TIMEOUT) as client:
        async with asyncio.timeout(TIMEOUT):
            while not all(map(answered, servers)):  # until it is connected to all
                await asyncio.to_thread(client.recognize, SEVEN)
        before = [answered(server) for server in servers]
        for _ in range(30):
            await asyncio.to_thread(client.recognize, SEVEN)
    assert [answered(server) - old for server, old in zip(servers, before, strict=True)] == [10, 10, 10]


async def test_a_server_that_stops_costs_no_call_and_is_used_again_once_back(start_server: StartServer) -> None:
    stays, goes = await start_server(), await start_server()
    over = asyncio.Event()
    with DigitClient(address(stays, goes), TIMEOUT) as client:
        callers = [asyncio.create_task(call_on(client, over)) for _ in range(4)]
        await until_called(stays)
        await until_called(goes)
        await goes.stop(drain_seconds=0, grace_seconds=TIMEOUT)
        await until_called(stays)
        back = await start_server(grpc_port=goes.grpc_port)
        await until_called(back)
        over.set()
        ended = sum(await asyncio.gather(*callers), Counter())
    assert set(ended) == {"OK"}, ended


async def test_the_load_test_calls_all_servers(start_server: StartServer) -> None:
    servers = [await start_server() for _ in range(2)]
    plan = Plan(rpc="recognize", callers=2, connections=1, seconds=0.5, warmup_seconds=0.5)
    tally = await asyncio.to_thread(processes.measure, plan, GrpcTarget(address(*servers)), 1)
    assert not tally.errors
    assert min(map(answered, servers)) > 0


class Refusing(stubs.DigitServiceServicer):
    """Refuses every call, and counts them."""

    def __init__(self, code: grpc.StatusCode, *metadata: tuple[str, str]):
        self.calls: Counter[str] = Counter()
        self._code, self._metadata = code, metadata

    def _refuse(self, method: str, context: grpc.ServicerContext) -> Any:
        self.calls[method] += 1
        context.set_trailing_metadata(self._metadata)
        context.abort(self._code, "refused by the test")

    def Recognize(self, request: pb.RecognizeRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's names
        self._refuse("Recognize", context)

    def RecognizeBatch(self, request: pb.RecognizeBatchRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._refuse("RecognizeBatch", context)

    def ReadField(self, request: pb.ReadFieldRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._refuse("ReadField", context)

    def ReportTruth(self, request: pb.ReportTruthRequest, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._refuse("ReportTruth", context)

    def RecognizeStream(self, request: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._refuse("RecognizeStream", context)


@contextmanager
def served(servicer: Refusing, timeout_seconds: float = TIMEOUT) -> Iterator[DigitClient]:
    """Yields a client of a server with this servicer."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    stubs.add_DigitServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with DigitClient(f"127.0.0.1:{port}", timeout_seconds) as client:
        yield client
    server.stop(None).wait(TIMEOUT)


def call_everything(client: DigitClient) -> set[grpc.StatusCode]:
    """Calls each method once, and returns the status codes."""
    answer = Recognition(7, 1.0, SEVEN[0].astype("f4"), "1", Decision.ACCEPT, None, None, recognition_id="an id")
    batch = SEVEN[None]
    ended = set()
    for call in (
        lambda: client.recognize(SEVEN),
        lambda: client.recognize_batch(batch),
        lambda: client.read_field(batch),
        lambda: client.report_truth([(answer, 7)], "keying"),
        lambda: next(client.recognize_stream(itertools.repeat(SEVEN))),
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            call()
        ended.add(refusal.value.code())
    return ended


def test_only_reads_are_retried_when_a_server_is_unavailable() -> None:
    servicer = Refusing(CODE.UNAVAILABLE)
    with served(servicer) as client:
        assert call_everything(client) == {CODE.UNAVAILABLE}
    assert servicer.calls == {"Recognize": 5, "RecognizeBatch": 5, "ReadField": 5, "ReportTruth": 1, "RecognizeStream": 1}


@pytest.mark.parametrize("metadata", [(), (("grpc-retry-pushback-ms", "1"),)])
@pytest.mark.parametrize("code", [CODE.RESOURCE_EXHAUSTED, CODE.CANCELLED, CODE.INTERNAL])
def test_no_call_is_retried_when_a_server_is_overloaded_or_fails(
    code: grpc.StatusCode, metadata: tuple[tuple[str, str], ...]
) -> None:
    servicer = Refusing(code, *metadata)
    with served(servicer) as client:
        assert call_everything(client) == {code}
    assert set(servicer.calls.values()) == {1}


def test_all_attempts_share_the_timeout_and_honour_the_servers_delay() -> None:
    servicer = Refusing(CODE.UNAVAILABLE, ("grpc-retry-pushback-ms", "60000"))
    with served(servicer, timeout_seconds=0.5) as client, pytest.raises(grpc.RpcError) as refusal:
        client.recognize(SEVEN)
    assert refusal.value.code() is CODE.DEADLINE_EXCEEDED
    assert servicer.calls == {"Recognize": 1}
