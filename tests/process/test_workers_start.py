import asyncio
import re
import shutil
import signal
import socket
from pathlib import Path
from textwrap import indent

import pytest

from serving.process import supervisor as supervisor_module
from serving.process.supervisor import StartFailed, Supervisor
from serving.process.worker_process import WorkerProcess, spawn
from serving.settings import BUNDLED, Settings
from serving.telemetry.multiprocess_metrics import DIRECTORY, MetricsDirectory
from tests.support.calls import TIMEOUT
from tests.support.service import Service, refused, service


def test_a_model_that_cannot_be_served_ends_the_start_with_one_message(tmp_path: Path) -> None:
    file = tmp_path / "digits" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no model")
    status, complaint = refused("--workers", "2", "--models", str(tmp_path))
    assert status == 1
    assert len(re.findall("^digits serve: ", complaint, re.MULTILINE)) == 1
    assert complaint.splitlines()[-1].startswith(f"digits serve: {file} ")


def break_workers(tmp_path: Path, how: str) -> dict[str, str]:
    """Returns an environment in which workers, but not their supervisor, run this code before their own."""
    tmp_path.joinpath("sitecustomize.py").write_text(
        f"import sys\nif 'serving.process.worker' in sys.orig_argv:\n{indent(how, '    ')}"
    )
    return {"PYTHONPATH": str(tmp_path)}


def test_an_absent_repository_ends_the_start_with_one_message_that_names_it(tmp_path: Path) -> None:
    status, complaint = refused("--workers", "2", "--models", str(tmp_path / "missing"))
    assert status == 1
    assert len(re.findall("^digits serve: ", complaint, re.MULTILINE)) == 1
    assert complaint.splitlines()[-1].startswith("digits serve: ")
    assert str(tmp_path / "missing") in complaint.splitlines()[-1]


def test_a_bug_at_the_start_of_a_worker_is_logged_with_its_traceback(tmp_path: Path) -> None:
    code = """
from serving.process.server import Server
def start(self):
    raise LookupError("unforeseen")
Server.start = start
"""
    status, complaint = refused("--workers", "2", **break_workers(tmp_path, code))
    assert status == 1
    assert complaint.splitlines()[-1] == "digits serve: unexpected LookupError: unforeseen; the log has its traceback"
    assert "Traceback (most recent call last)" in complaint


def test_a_worker_that_closes_its_channel_has_a_moment_to_exit(tmp_path: Path) -> None:
    code = """
import atexit, time
from serving.process.message_channel import MessageChannel
async def receive(self):
    await self.close()
    raise LookupError("unforeseen")
MessageChannel.receive = receive
atexit.register(time.sleep, 0.5)
"""
    status, complaint = refused("--workers", "2", **break_workers(tmp_path, code))
    assert status == 1
    assert "LookupError: unforeseen" in complaint
    assert re.fullmatch(r"digits serve: worker \d exited during its start, with status 1", complaint.splitlines()[-1])


async def test_a_worker_does_not_outlive_a_start_that_fails_for_another_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = MetricsDirectory(2, [tmp_path])
    supervisor = Supervisor(Settings(workers=2, grpc_port=0), directory)
    first_failed = asyncio.Event()
    started: list[WorkerProcess] = []

    async def spawn_the_second_late(number: int, lock: int, mask: asyncio.Lock) -> WorkerProcess:
        if not first_failed.is_set():
            first_failed.set()
            raise OSError("no more processes")
        await supervisor._stopping.wait()
        started.append(await spawn(number, lock, mask))
        return started[0]

    monkeypatch.setattr(supervisor_module, "spawn", spawn_the_second_late)
    with pytest.raises(StartFailed, match="no more processes"):
        await asyncio.wait_for(supervisor.run(asyncio.Queue(), 0), TIMEOUT)
    assert [worker.process.returncode for worker in started] == [-signal.SIGKILL]
    directory.remove()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_other_workers_share_is_taken(two: Service, workers: str) -> None:
    port = two.address.rpartition(":")[2]
    status, complaint = refused("--workers", workers, "--grpc-port", port)
    assert status == 1
    assert complaint.splitlines()[-1].startswith(f"digits serve: cannot listen on 127.0.0.1:{port} for gRPC")


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_of_another_program_is_not_shared_with_it(option: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        status, complaint = refused("--workers", "2", "--grpc-port", port)
    assert (status, complaint.count("\n")) == (1, 1)
    assert f"digits serve: cannot listen on 127.0.0.1:{port} for gRPC: Address already in use" in complaint


def test_without_room_for_the_metrics_nothing_is_started(tmp_path: Path) -> None:
    status, complaint = refused("--workers", "2", **{DIRECTORY: str(tmp_path / "missing")})
    assert (status, complaint.count("\n")) == (1, 1)
    assert "digits serve: no room for the metrics of 2 workers" in complaint


def test_one_of_the_workers_logs_the_directories_that_are_skipped(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(BUNDLED, models)
    with service("--workers", "2", "--models", str(models), "--poll-seconds", "0.05", "--drain-seconds", "0") as started:
        log = started.process.stderr
        assert log is not None
        lines: list[str] = []
        for name in ("v3", "v4", "v5"):  # until the last is logged, each worker has had time to log the first
            (models / "digits" / name).mkdir()
            while not lines or f"{name} is skipped" not in lines[-1]:
                lines.append(log.readline())
                assert lines[-1], "the service should run"
        started.process.send_signal(signal.SIGTERM)
        lines += started.end()[1].splitlines()
    assert sum("v3 is skipped" in line for line in lines) == 1
