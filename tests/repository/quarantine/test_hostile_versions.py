import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest

from serving.errors import LoadFailed
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.repository.rollout import Images, index, recognize_all, stable_version, until_refused, until_stable
from tests.support.calls import TIMEOUT
from tests.support.hostile_models import publish_hostile
from tests.support.metrics import until, value
from tests.support.model_files import place, publish
from tests.support.servers import StartServer
from tests.support.service import launch


async def test_sound_versions_are_taken_up_while_another_hangs(
    start_server: StartServer, images: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.05, load_seconds=8)
    publish_hostile(tmp_path, 5, "hang")
    async with asyncio.timeout(TIMEOUT):
        while index(server).get(("digits", "5")) != ("LOADING", ""):
            await asyncio.sleep(0.01)
    publish(tmp_path, 2)
    publish(tmp_path, 6, "other")
    await until_stable(server, "2")
    assert index(server)["digits", "5"] == ("LOADING", "")
    assert len(await recognize_all(server, images[:1], model="other")) == 1
    assert "loading digits version 5" in caplog.text
    await until_refused(server, "hung")
    state, reason = index(server)["digits", "5"]
    assert state == "UNAVAILABLE"
    assert reason.startswith("hung the process that tried it")
    assert stable_version(server) == "2"


async def test_a_crash_costs_no_call_and_the_refusal_ends_when_asked(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.05)
    publish_hostile(tmp_path, 2, "crash")
    await until_refused(server, "crashed")
    assert index(server)["digits", "2"] == ("UNAVAILABLE", "crashed the process that tried it: SIGFPE")
    assert {answer.model_version for answer in await recognize_all(server, images[:3])} == {"1"}
    with pytest.raises(LoadFailed, match="version 2 crashed the process that tried it: SIGFPE; version 1 keeps serving"):
        await server.repository.load("digits")
    publish(tmp_path, 2)
    await until_stable(server, "2")
    assert value(server.metrics.registry, "digits_model_refused") == 0


async def test_a_start_goes_on_with_the_version_below_one_that_hangs(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish_hostile(tmp_path, 2, "hang")
    server = await start_server(None, models=tmp_path, load_seconds=30)
    assert stable_version(server) == "1"
    assert index(server)["digits", "2"] == ("LOADING", "")


async def test_a_fault_outside_the_file_is_tried_again_without_an_operator(
    start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.05)
    sound = publish(tmp_path, 2, "elsewhere")
    file = place(tmp_path, 2)
    file.symlink_to("model.onnx")  # a loop, which stands for a disk that can't be read
    await until_refused(server, "environment")
    assert index(server)["digits", "2"][1] == "cannot be read: Too many levels of symbolic links"
    assert "trying again in 1 s" in caplog.text
    await until(server.metrics.registry, "digits_model_refused", 1, reason="environment")
    async with asyncio.timeout(TIMEOUT):
        while "trying again in 2 s" not in caplog.text:
            await asyncio.sleep(0.05)
    file.unlink()
    file.symlink_to(sound)
    await until_stable(server, "2")
    assert value(server.metrics.registry, "digits_model_refused") == 0


async def test_a_run_of_the_wrong_shape_fails_alone(start_server: StartServer, images: Images, tmp_path: Path) -> None:
    publish_hostile(tmp_path, 1, "rows77")  # a size that the quarantine does not try
    server = await start_server(None, models=tmp_path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        for size, code in ((76, None), (77, grpc.StatusCode.INTERNAL), (78, None), (1, None)):
            found = None
            try:
                await stub.RecognizeBatch(pb.RecognizeBatchRequest(images=images[:size].tobytes()), timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                found = error.code()
            assert found is code, size


async def test_a_fifo_or_a_huge_file_as_routing_is_refused(start_server: StartServer, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    server = await start_server(None, models=tmp_path, poll_seconds=0.02)
    routing = tmp_path / "digits" / "routing.toml"
    os.mkfifo(routing)
    await until_refused(server, "routing")
    routing.unlink()
    await until(server.metrics.registry, "digits_model_refused", 0)
    routing.write_text(f"#{'x' * 70_000}\n")
    await until_refused(server, "routing")
    publish(tmp_path, 2, "other")
    async with asyncio.timeout(TIMEOUT):
        while ("other", "2") not in index(server):
            await asyncio.sleep(0.01)


@contextmanager
def starting(models: Path, workers: int) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """Runs a service whose start waits for a child process that tries a file; yields both."""
    process = launch("--models", str(models), "--workers", str(workers), "--drain-seconds", "0")
    try:
        yield process, _child(process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _child(pid: int) -> psutil.Process:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if "serving.repository.quarantine.child" in child.cmdline() and child.cpu_times().user > 0.5:
                    return child
        time.sleep(0.02)
    raise TimeoutError("no child process tries the file")


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_a_start_that_waits_for_a_file_that_hangs(tmp_path: Path, workers: int) -> None:
    publish_hostile(tmp_path, 1, "hang")
    with starting(tmp_path, workers) as (process, child):
        process.terminate()
        assert process.wait(TIMEOUT / 2) == 0
        psutil.wait_procs([child], TIMEOUT)
        assert not child.is_running()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_service_leaves_no_child_process(tmp_path: Path, workers: int) -> None:
    publish_hostile(tmp_path, 1, "hang")
    with starting(tmp_path, workers) as (process, child):
        others = [] if workers == 1 else [child.parent()]
        for victim in [*others, psutil.Process(process.pid)]:
            if victim:
                victim.kill()
        psutil.wait_procs([child], TIMEOUT)
        assert not child.is_running()
