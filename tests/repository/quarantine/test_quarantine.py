import asyncio
import contextlib
import errno
import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.inference.metadata import ModelError
from serving.repository.quarantine.examination import Examination, Verdict
from serving.repository.quarantine.quarantine import Quarantine
from serving.repository.versions import ModelVersion, latest
from serving.settings import Settings
from tests.support.calls import TIMEOUT
from tests.support.hostile_models import publish_hostile
from tests.support.model_files import place, publish


def quarantine(models: Path, **settings: Any) -> Quarantine:
    return Quarantine(Settings(models=models, **{"load_seconds": 20, **settings}))


async def refusal(of: Quarantine, source: ModelVersion, since: float = 0.0) -> ModelError:
    with pytest.raises(ModelError) as refused:
        await of.open(source, since)
    return refused.value


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the versions that child processes have tried."""
    tried: list[int] = []
    check = Examination.check

    async def counted(self: Examination, source: ModelVersion) -> Verdict:
        tried.append(source.number)
        return await check(self, source)

    monkeypatch.setattr(Examination, "check", counted)
    return tried


@pytest.mark.parametrize(
    ("kind", "reason", "message"),
    [
        ("crash", "crashed", "crashed the process that tried it: SIGFPE"),
        ("hang", "hung", "hung the process that tried it: it had not ended after 2 s"),
        ("memory", "memory", "ran out of memory while it was tried with 268435456 bytes"),
        ("external", "contract", "it has external data"),
        ("address", "contract", "it has external data"),
        (
            "rows3",
            "self_check",
            "the shapes [(1, 10), (1, 10)] for 3 images",
        ),
    ],
)
async def test_a_hostile_file_is_refused_with_a_reason_of_its_own(
    tmp_path: Path, kind: str, reason: str, message: str
) -> None:
    publish_hostile(tmp_path, 7, kind)
    refused = await refusal(quarantine(tmp_path, load_seconds=2 if kind == "hang" else 20), latest(tmp_path))
    assert refused.reason == reason
    assert message in str(refused)


async def test_a_sound_file_is_opened_and_tried_once_per_content(tmp_path: Path, checks: list[int]) -> None:
    publish(tmp_path, 1)
    assert (await quarantine(tmp_path).open(latest(tmp_path))).version == "1"
    publish(tmp_path, 2)
    assert (await quarantine(tmp_path).open(latest(tmp_path))).version == "2"
    assert checks == [1]


def memory_files() -> Counter[int]:
    """Descriptors of memory files of models that this process has open, by inode."""
    files: Counter[int] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if str(link.readlink()).startswith("/memfd:digits"):
                files[link.stat().st_ino] += 1
    return files


async def test_many_versions_start_few_processes_and_all_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = range(1, 10)
    sources = []
    for number in numbers:
        publish(tmp_path, number)
        sources.append(latest(tmp_path))
    before = memory_files()  # of other tests
    at_once: list[int] = []
    read = Examination.read

    async def slow(self: Examination, source: ModelVersion) -> str:
        at_once.append(len(memory_files() - before))
        await asyncio.sleep(0.1)  # the others would start meanwhile
        return await read(self, source)

    monkeypatch.setattr(Examination, "read", slow)
    of = quarantine(tmp_path)
    opened = await asyncio.gather(*(of.open(source) for source in sources))
    assert [model.version for model in opened] == [str(number) for number in numbers]
    assert max(at_once) == 4
    assert not memory_files() - before


async def test_a_load_cancelled_before_its_thread_begins_leaves_no_file_open(tmp_path: Path) -> None:
    asked = asyncio.Event()

    class Busy(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **named: Any) -> Any:
            asked.set()
            return super().submit(*arguments, **named)

    publish(tmp_path, 7)
    before = memory_files()
    end = threading.Event()
    with Busy(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        threads.submit(end.wait, TIMEOUT)
        asked.clear()
        loading = asyncio.create_task(quarantine(tmp_path).open(latest(tmp_path)))
        try:
            await asyncio.wait_for(asked.wait(), TIMEOUT)
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        finally:
            end.set()
    assert loading.cancelled()
    assert not memory_files() - before


async def test_sound_versions_are_opened_after_four_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for number in range(1, 7):
        if number <= 4:
            place(tmp_path, number).write_bytes(b"hangs %d" % number)
        else:
            publish(tmp_path, number)
        sources.append(latest(tmp_path))
    check = Examination.check

    async def hang(self: Examination, source: ModelVersion) -> Verdict:
        if source.number > 4:
            return await check(self, source)
        await asyncio.sleep(0.1)
        return Verdict("hung", "hung the process that tried it")

    monkeypatch.setattr(Examination, "check", hang)
    of = quarantine(tmp_path)
    opened = await asyncio.gather(*(of.open(source) for source in sources), return_exceptions=True)
    assert [getattr(result, "reason", None) or getattr(result, "version", None) for result in opened] == [
        *["hung"] * 4,
        *["5", "6"],
    ]


async def test_a_refusal_outlives_the_process_until_an_operator_asks(
    tmp_path: Path, private: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_hostile(tmp_path, 7, "crash")
    first = await refusal(quarantine(tmp_path), latest(tmp_path))
    again = await refusal(quarantine(tmp_path), latest(tmp_path))
    assert (first.reason, str(first)) == (again.reason, str(again))
    for file in private.rglob("*.json"):  # another machine, with the same repository
        file.unlink()
    assert (await refusal(quarantine(tmp_path), latest(tmp_path))).reason == "crashed"
    assert checks == [7]
    assert (await refusal(quarantine(tmp_path), latest(tmp_path), since=time.time())).reason == "crashed"
    assert checks == [7, 7]


async def test_a_refusal_does_not_outlive_other_limits(tmp_path: Path, checks: list[int]) -> None:
    publish_hostile(tmp_path, 7, "memory")
    await refusal(quarantine(tmp_path), latest(tmp_path))
    await refusal(quarantine(tmp_path, load_memory_bytes=300 << 20), latest(tmp_path))
    assert checks == [7, 7]


async def test_who_can_publish_models_cannot_vouch_for_one(tmp_path: Path, private: Path, checks: list[int]) -> None:
    publish_hostile(tmp_path, 7, "crash")
    await refusal(quarantine(tmp_path), latest(tmp_path))
    for file in private.rglob("*.json"):
        file.unlink()
    (kept,) = (tmp_path / ".refused").glob("*.json")
    vouched = json.loads(kept.read_text()) | {"time": time.time() + 1000, "reason": "", "message": ""}
    kept.write_text(json.dumps(vouched))
    assert (await refusal(quarantine(tmp_path), latest(tmp_path))).reason == "crashed"
    assert checks == [7, 7]


async def test_several_workers_try_a_file_only_once(tmp_path: Path, checks: list[int]) -> None:
    publish_hostile(tmp_path, 7, "crash")
    workers = [quarantine(tmp_path) for _ in range(3)]
    refused = await asyncio.gather(*(refusal(worker, latest(tmp_path)) for worker in workers))
    assert [error.reason for error in refused] == ["crashed"] * 3
    assert checks == [7]


async def test_a_repository_that_is_read_only_keeps_refusals_on_the_machine(
    tmp_path: Path, checks: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    publish_hostile(tmp_path, 7, "crash")
    (tmp_path / ".refused").write_text("no directory")
    await refusal(quarantine(tmp_path), latest(tmp_path))
    assert "refusals are kept on this machine only; --refusals names a directory that lasts" in caplog.text
    await refusal(quarantine(tmp_path), latest(tmp_path))
    assert checks == [7]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN + 1])
async def test_a_child_killed_from_outside_never_blames_the_file(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(self: Examination, source: ModelVersion) -> Verdict:
        self._process.send_signal(number)
        return await self._silent(source)

    publish(tmp_path, 7)
    of = quarantine(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Examination, "check", killed)
        assert [(await refusal(of, latest(tmp_path))).reason for _ in range(4)] == ["environment"] * 4
    assert (await of.open(latest(tmp_path))).version == "7"


async def test_a_child_that_waits_for_the_machine_never_blames_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def starved(self: Examination, source: ModelVersion) -> Verdict:
        self._process.send_signal(signal.SIGSTOP)
        return await check(self, source)

    publish(tmp_path, 7)
    check = Examination.check
    monkeypatch.setattr(Examination, "check", starved)
    of = quarantine(tmp_path, load_seconds=1)
    assert [(await refusal(of, latest(tmp_path))).reason for _ in range(4)] == ["environment"] * 4


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "large", "socket"])
async def test_only_a_regular_file_of_bounded_size_is_read(tmp_path: Path, kind: str) -> None:
    file = place(tmp_path, 7)
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "directory":
        file.mkdir()
    elif kind == "socket":
        os.mknod(file, 0o140644)
    else:
        with file.open("wb") as sparse:
            sparse.truncate(3 << 30)
    refused = await refusal(quarantine(tmp_path), latest(tmp_path))
    assert refused.reason == "unreadable"


async def test_a_file_that_changed_since_the_poll_is_no_fault_of_the_file(tmp_path: Path) -> None:
    publish(tmp_path, 7)
    source = latest(tmp_path)
    os.utime(source.path)
    refused = await refusal(quarantine(tmp_path), source)
    assert (refused.reason, str(refused)) == ("environment", "cannot be read: it changed meanwhile")


async def test_without_processes_a_version_waits_for_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, 7)

    async def fail(*arguments: str, **named: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    refused = await refusal(quarantine(tmp_path), latest(tmp_path))
    assert refused.reason == "environment"
    assert str(refused) == "was not tried: no process can be started: Resource temporarily unavailable"


async def test_what_a_broken_installation_says_goes_to_the_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path / "models", 7)
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "onnxruntime.py").write_text(
        "raise ImportError('libonnx.so: cannot open' + 3000 * '.' + 'end')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    refused = await refusal(quarantine(tmp_path / "models"), latest(tmp_path / "models"))
    assert (refused.reason, str(refused)) == ("environment", "was not tried: the process for it ended with status 1")
    (record,) = caplog.records
    assert f"the process that tried {tmp_path}/models/digits/7/model.onnx ended with status 1" in record.message
    assert record.message.endswith("...end")
    assert len(record.message) < 2200


async def test_a_child_that_prints_without_end_is_not_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "models", 7)
    (tmp_path / "installed").mkdir()
    floods = "import os, sys\nfor _ in range(100):\n    try: os.write(2, 10_000 * b'x')\n    except BlockingIOError: pass\n"
    (tmp_path / "installed" / "sitecustomize.py").write_text(floods)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    opened = await quarantine(tmp_path / "models").open(latest(tmp_path / "models"))
    assert opened.version == "7"


async def test_a_child_gets_no_settings_which_may_be_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGITS_CAPTURE", "postgresql://user:password@host/database")
    publish_hostile(tmp_path, 7, "hang")
    others = {*Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    loading = asyncio.create_task(quarantine(tmp_path).open(latest(tmp_path)))
    async with asyncio.timeout(20):
        while not (children := [*{*Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()} - others]):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
    environment = Path(f"/proc/{children[0]}/environ").read_bytes()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    assert b"PYTHONPATH" in environment
    assert b"user:password" not in environment
    assert not Path(f"/proc/{children[0]}").exists(), "a load that is not wanted any more leaves no process"
