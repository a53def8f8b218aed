import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from serving.loadtest.calls import KINDS
from serving.loadtest.connect import ConnectCaller, ConnectTarget
from serving.loadtest.generator import samples
from serving.loadtest.plan import Plan, Rpc
from serving.loadtest.processes import LoadTestError, measure
from serving.loadtest.target import Outcome
from serving.process.server import Server
from tests.support.calls import TIMEOUT
from tests.support.load import run_plan
from tests.support.servers import StartServer

SEVEN = ConnectTarget("").request(Plan(), samples()[7:8])


@pytest.fixture
def front() -> str:
    return "http2"


def caller(port: int, **plan: Any) -> ConnectCaller:
    return ConnectCaller(f"127.0.0.1:{port}", Plan(**{"timeout_seconds": TIMEOUT, **plan}), None, None)


@pytest.mark.parametrize("load", [{"callers": 4}, {"rate": 50.0}], ids=["closed", "open"])
@pytest.mark.parametrize("rpc", KINDS)
async def test_every_unary_rpc_in_either_loop_gets_right_answers(server: Server, rpc: Rpc, load: dict[str, Any]) -> None:
    images = {"batch": 16, "field": 5, "infer": 3}.get(rpc, 1)
    tally = await run_plan(ConnectTarget(f"127.0.0.1:{server.grpc_port}"), rpc=rpc, images=images, **load)
    assert tally.answered > 0
    assert (dict(tally.codes), tally.wrong) == ({"OK": tally.calls}, 0)


async def test_large_requests_pass_the_windows_of_the_server(server: Server) -> None:
    plan = Plan(rpc="batch", images=4096, timeout_seconds=TIMEOUT)  # 3 MB, three times the window of a stream
    request = ConnectTarget("").request(plan, samples()[[7] * 4096])
    one = caller(server.grpc_port, rpc="batch", images=4096)
    assert await one.call(request) == Outcome("OK", (7,) * 4096)
    await one.close()


async def test_an_error_has_the_name_of_its_grpc_code(start_server: StartServer) -> None:
    server = await start_server()
    target = ConnectTarget(f"127.0.0.1:{server.grpc_port}")
    with pytest.raises(LoadTestError, match=r"NOT_FOUND: .*nobody"):
        await asyncio.to_thread(measure, Plan(callers=1, model="nobody"), target, 1)
    one = caller(server.grpc_port)
    assert (await one.call(b"\xff")).code == "INVALID_ARGUMENT"
    await one.close()


async def test_a_closed_connection_is_replaced(server: Server) -> None:
    one = caller(server.grpc_port)
    assert await one.call(SEVEN) == Outcome("OK", (7,))
    assert one._connection is not None
    first = one._connection
    first.close()
    async with asyncio.timeout(TIMEOUT):
        while first.usable:
            await asyncio.sleep(0.01)
    assert await one.call(SEVEN) == Outcome("OK", (7,))
    assert one._connection is not first
    await one.close()


@pytest.mark.parametrize(
    ("serve", "code"),
    [
        (lambda writer: None, "DEADLINE_EXCEEDED"),
        (lambda writer: writer.close(), "UNAVAILABLE"),
        (lambda writer: writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "UNAVAILABLE"),
    ],
    ids=["silent", "closing", "HTTP/1.1"],
)
async def test_a_server_without_an_answer_is_counted_by_code(
    serve: Callable[[asyncio.StreamWriter], None], code: str
) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serve(writer)
        with contextlib.suppress(OSError):
            await reader.read()
            writer.close()
            await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as listening:
        one = caller(listening.sockets[0].getsockname()[1], timeout_seconds=0.5 if code == "DEADLINE_EXCEEDED" else TIMEOUT)
        assert (await one.call(SEVEN)).code == code
        await one.close()
        await asyncio.wait_for(ended.wait(), TIMEOUT)
