import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.telemetry.multiprocess_metrics import DIRECTORY
from tests.support.calls import TIMEOUT
from tests.support.service import Service, service
from tests.support.workers import connections, lives, ready, until


async def test_sigterm_drains_all_workers_without_losing_a_call(two: Service, request_one: pb.RecognizeRequest) -> None:
    answered = 0

    async def call_until_refused(stub: DigitServiceStub) -> grpc.StatusCode:
        nonlocal answered
        while True:
            try:
                await stub.Recognize(request_one, timeout=TIMEOUT)
                answered += 1
            except grpc.aio.AioRpcError as error:
                return error.code()

    async with connections(two, 8) as stubs:
        callers = [asyncio.create_task(call_until_refused(stub)) for stub in stubs for _ in range(4)]
        await until(lambda: answered > 500)
        assert ready(two) == (200, "ready\n")
        two.process.send_signal(signal.SIGTERM)
        await until(lambda: ready(two) == (503, "draining\n"))
        before = answered
        two.process.send_signal(signal.SIGTERM)  # twice is once
        assert set(await asyncio.gather(*callers)) == {grpc.StatusCode.UNAVAILABLE}
    assert answered > before, "it should go on answering while it drains"
    status, log = await asyncio.to_thread(two.end)
    assert status == 0
    assert log.count("SIGTERM") == 1
    assert f"calls ended, by status code: {{'OK': {answered}" in log


async def test_workers_whose_supervisor_is_killed_drain_and_exit(two: Service, request_one: pb.RecognizeRequest) -> None:
    workers = two.workers()
    assert len(workers) == 2
    async with connections(two, 8) as stubs:
        await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
        two.process.kill()
        await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
        await until(lambda: not any(lives(pid) for pid in workers))


async def test_ctrl_c_reaches_the_whole_process_group_and_loses_no_call_in_flight(
    two: Service, tmp_path: Path, request_one: pb.RecognizeRequest
) -> None:
    async with connections(two, 8) as stubs:
        await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
        os.killpg(two.process.pid, signal.SIGINT)
        status, log = await asyncio.to_thread(two.end)
    assert (status, log.count("SIGINT"), log.count("Traceback")) == (0, 1, 0), log
    assert "SIGINT: draining for 0 s" in log
    assert "by status code: {'OK': 8}" in log
    assert not os.listdir(tmp_path), "nothing should be left of its metrics"  # noqa: PTH208 - ruff takes the other for slow


def test_a_worker_that_hangs_at_the_shutdown_is_killed_and_the_status_is_1(tmp_path: Path) -> None:
    environment = {DIRECTORY: str(tmp_path)}
    with service("--workers", "2", "--drain-seconds", "0", "--grace-seconds", "0.1", **environment) as started:
        hanging = started.workers()[0]
        os.kill(hanging, signal.SIGSTOP)
        started.process.send_signal(signal.SIGTERM)
        status, log = started.end()
        assert status == 1
        assert f"(pid {hanging}) has not ended; killing it" in log
        assert not lives(hanging)


@pytest.mark.parametrize("front", ["http2", "grpcio"])
async def test_a_killed_supervisor_is_replaced_on_its_ports_at_once(
    tmp_path: Path, request_one: pb.RecognizeRequest, front: str
) -> None:
    with service("--workers", "2", "--front", front, "--drain-seconds", "30", **{DIRECTORY: str(tmp_path)}) as killed:
        orphans = killed.workers()
        async with connections(killed, 8) as stubs:
            await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
            killed.process.kill()
            killed.process.wait()
            ports = [where.rpartition(":")[2].partition("/")[0] for where in (killed.address, killed.metrics)]
            flags = ("--workers", "2", "--front", front, "--grpc-port", ports[0], "--metrics-port", ports[1])
            with service(*flags, "--drain-seconds", "0") as successor:
                assert all(lives(pid) for pid in orphans), "they should still drain"
                await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in stubs))
                async with connections(successor, 8) as others:
                    await asyncio.gather(*(stub.Recognize(request_one, timeout=TIMEOUT) for stub in others))
                assert successor.scrape("digits_requests_total", code="OK") == 8, "orphans should take no new connection"
