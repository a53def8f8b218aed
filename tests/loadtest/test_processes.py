import asyncio
import math
import subprocess
import time
from pathlib import Path

import pytest

from serving.loadtest.calls import GrpcTarget
from serving.loadtest.plan import Plan
from serving.loadtest.processes import LoadTestError, Progress, measure, shares
from serving.process.server import Server
from tests.support.load import TIMEOUT
from tests.support.service import DIGITS, Service


async def test_several_processes_send_the_load_of_one_and_add_up(server: Server) -> None:
    progress: list[Progress] = []
    plan = Plan(rate=60.0, arrivals="fixed", seconds=2.0, warmup_seconds=0.5, late_seconds=math.inf)
    target = GrpcTarget(f"127.0.0.1:{server.grpc_port}")
    tally = await asyncio.to_thread(measure, plan, target, 3, progress.append)
    assert tally.calls == pytest.approx(120, abs=3)
    assert sum(one.latest.calls for one in progress) == tally.calls
    assert [one.seconds for one in progress] == sorted(one.seconds for one in progress)


def test_callers_and_rates_are_divided_among_processes() -> None:
    assert [one.callers for one in shares(Plan(callers=5), 3)] == [2, 2, 1]
    assert [one.callers for one in shares(Plan(callers=2), 4)] == [1, 1]
    assert [one.rate for one in shares(Plan(rate=90.0), 3)] == [30.0] * 3
    assert len({one.seed for one in shares(Plan(rate=90.0), 3)}) == 3


def test_an_absent_or_refusing_service_is_named(server_address: str) -> None:
    with pytest.raises(LoadTestError, match=r"127\.0\.0\.1:1 answers a first call with UNAVAILABLE: .*refused"):
        measure(Plan(callers=1), GrpcTarget("127.0.0.1:1"), 1)
    with pytest.raises(LoadTestError, match=r"NOT_FOUND: .*nobody"):
        measure(Plan(callers=1, model="nobody"), GrpcTarget(server_address), 1)


@pytest.mark.parametrize("sending", [False, True], ids=["before it sends", "while it sends"])
def test_no_process_is_left_after_one_dies(service_: Service, sending: bool) -> None:
    flags = ["--callers", "2", "--processes", "2", "--seconds", "30"]
    command = [*DIGITS, "loadtest", "--address", service_.address, *flags]
    before = service_.scrape("digits_requests_total")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + TIMEOUT
        while len(children := senders(running.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        while sending and service_.scrape("digits_requests_total") < before + 100 and time.monotonic() < deadline:
            time.sleep(0.05)
        subprocess.run(["kill", "-9", str(children[0])], check=True)
        _, errors = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 1
    assert "a process of the test has died" in errors
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def senders(pid: int) -> list[int]:
    """Returns the sending processes of a load test, without the resource tracker of multiprocessing."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
