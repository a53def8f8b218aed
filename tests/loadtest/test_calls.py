import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from serving.loadtest.calls import KINDS, GrpcTarget, StreamCaller
from serving.loadtest.plan import Plan, Rpc
from serving.loadtest.target import Outcome
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from tests.support.load import TIMEOUT, answering, right, run_plan
from tests.support.metrics import until, value


@pytest.mark.parametrize("load", [{"callers": 4}, {"rate": 50.0}])
@pytest.mark.parametrize("rpc", [*KINDS, "stream"])
async def test_every_rpc_in_either_loop_gets_right_answers(server: Server, rpc: Rpc, load: dict[str, Any]) -> None:
    images = {"batch": 16, "field": 5, "infer": 3}.get(rpc, 1)
    tally = await run_plan(GrpcTarget(f"127.0.0.1:{server.grpc_port}"), rpc=rpc, images=images, **load)
    assert tally.answered > 0
    assert (dict(tally.codes), tally.wrong, tally.errors) == ({"OK": tally.calls}, 0, 0.0)
    assert tally.microseconds.get_total_count() == tally.calls


@pytest.mark.parametrize("rpc", [*KINDS, "stream"])
async def test_every_rpc_takes_a_priority(server: Server, rpc: Rpc) -> None:
    images = {"batch": 16, "field": 5, "infer": 3}.get(rpc, 1)
    target = GrpcTarget(f"127.0.0.1:{server.grpc_port}")
    tally = await run_plan(target, rpc=rpc, images=images, callers=1, priority="batch")
    assert (tally.wrong, tally.errors) == (0, 0.0)
    assert value(server.metrics.registry, "digits_batch_images_total") >= images * tally.calls > 0


async def test_an_open_loop_counts_all_calls_due_while_the_server_stalls() -> None:
    async def stall_once(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        if next(calls) == 40:
            time.sleep(1.0)  # noqa: ASYNC251 # blocks the event loop: no call is answered
        return right(request)

    calls = itertools.count()
    async with answering(stall_once) as target:
        opened = await run_plan(target, rate=100.0, arrivals="fixed", seconds=2.0, warmup_seconds=0.001)
        calls = itertools.count()
        closed = await run_plan(target, callers=1, seconds=2.0, warmup_seconds=0.001)
    # Of the 100 calls due in that second, those of the first 0.9 s waited for 0.1 s or longer.
    assert opened.slower_than(95) >= 85
    assert closed.slower_than(900) == 1
    assert opened.slower_than(900) >= 5


async def test_failed_calls_and_wrong_answers_are_counted() -> None:
    async def refuse_or_err(request: pb.RecognizeRequest, context: Any) -> pb.RecognizeResponse:
        number = next(calls)
        if number % 4 == 2:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        answer = right(request)
        if number % 4 == 3:
            answer.digit = (answer.digit + 1) % 10
        return answer

    calls = itertools.count()
    async with answering(refuse_or_err) as target:
        tally = await run_plan(target, callers=1)
    assert set(tally.codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert tally.codes["RESOURCE_EXHAUSTED"] == pytest.approx(tally.calls / 4, abs=1)
    assert tally.wrong == pytest.approx(tally.calls / 4, abs=1)
    assert tally.errors == pytest.approx(0.5, abs=2 / tally.calls)
    assert tally.answered == pytest.approx(tally.calls / 2, abs=2)


async def test_late_and_broken_calls_are_counted_and_the_test_ends() -> None:
    async def slow(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        if next(calls) > 12:
            await asyncio.sleep(TIMEOUT)
        return right(request)

    calls = itertools.count()
    async with answering(slow) as target:
        tally = await run_plan(target, rate=20.0, timeout_seconds=0.5)
    assert tally.codes["DEADLINE_EXCEEDED"] > 0
    assert set(tally.codes) <= {"OK", "DEADLINE_EXCEEDED"}

    async def stop(request: pb.RecognizeRequest, _: Any) -> pb.RecognizeResponse:
        if next(calls) == 20:
            stopped.set()
        return right(request)

    calls, stopped = itertools.count(), asyncio.Event()
    async with answering(stop) as target:
        testing = asyncio.create_task(run_plan(target, rate=50.0, timeout_seconds=2.0))
        await stopped.wait()
    tally = await testing
    assert tally.codes["OK"] > 0
    assert tally.codes["UNAVAILABLE"] > 0


async def test_a_broken_stream_is_opened_again(server: Server) -> None:
    target = GrpcTarget(f"127.0.0.1:{server.grpc_port}")
    testing = asyncio.create_task(run_plan(target, rpc="stream", rate=50.0, seconds=2.0, connections=1))
    registry = server.metrics.registry
    async with asyncio.timeout(TIMEOUT):
        while value(registry, "digits_requests_total", code="OK") < 20:
            await asyncio.sleep(0.01)
        server._streams.stop()
        await until(registry, "digits_requests_total", 1, code="UNAVAILABLE")
        before = value(registry, "digits_requests_total", code="OK")
    tally = await testing
    assert value(registry, "digits_requests_total", code="OK") > before
    assert set(tally.codes) <= {"OK", "UNAVAILABLE"}


async def test_a_stream_that_ends_during_a_write_is_no_internal_error() -> None:
    async def outcome(broken: Callable[[], Awaitable[None]]) -> Outcome:
        caller = StreamCaller(channel, Plan(rpc="stream", callers=1), ())
        caller._stream = SimpleNamespace(write=lambda _: broken())
        caller._reading = asyncio.create_task(asyncio.sleep(TIMEOUT))
        try:
            return await caller.call(b"")
        finally:
            caller._reading.cancel()

    async def fail_in_grpc() -> None:
        call: Any = channel.stream_stream("/a/b")()
        call._cython_call.set_internal_error("as gRPC does for a failed write")
        await call._raise_for_status()

    async def fail_in_server() -> None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "internal error")

    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        assert (await outcome(fail_in_grpc)).code == "UNAVAILABLE"
        assert (await outcome(fail_in_server)).code == "INTERNAL"
