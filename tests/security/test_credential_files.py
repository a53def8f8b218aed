import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from serving.disk_thread import on_disk_thread
from serving.security.credential_files import CredentialFiles, CredentialsError
from serving.telemetry.metrics import Metrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import value


class Applied:
    """Takes contents as a reload applies them, and refuses those that start with `no` or `crash`."""

    def __init__(self) -> None:
        self.contents: list[list[bytes]] = []

    def __call__(self, contents: Sequence[bytes]) -> None:
        if contents[0].startswith(b"no"):
            raise CredentialsError("refused")
        if contents[0].startswith(b"crash"):
            raise ZeroDivisionError
        self.contents.append([*contents])


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "first", tmp_path / "second"]
    for path in paths:
        path.write_bytes(b"1")
    return paths


def test_a_change_is_applied_when_two_reads_in_a_row_agree(paths: list[Path], metrics: Metrics) -> None:
    applied = Applied()
    files = CredentialFiles("keys", paths, applied, metrics)
    assert files.poll()
    paths[0].write_bytes(b"2")
    assert not files.poll()
    paths[1].write_bytes(b"2")
    assert not files.poll()
    assert applied.contents == [[b"1", b"1"]]
    assert files.poll()
    assert files.poll()
    assert applied.contents == [[b"1", b"1"], [b"2", b"2"]]


@pytest.mark.parametrize("content", [b"no", b"crash"])
def test_content_that_is_refused_counts_at_every_poll_until_repaired(
    paths: list[Path], metrics: Metrics, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    applied = Applied()
    files = CredentialFiles("keys", paths, applied, metrics)
    paths[0].write_bytes(content)
    assert [files.poll() for _ in range(3)] == [False, True, True]
    assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="keys") == 2
    assert caplog.text.count("the previous content stays in use") == 1
    paths[0].write_bytes(b"1")
    assert [files.poll() for _ in range(2)] == [False, True]
    assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="keys") == 2
    assert applied.contents == [[b"1", b"1"], [b"1", b"1"]]


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), RuntimeError("can't start new thread"), None])
def test_content_that_fails_for_an_outside_cause_is_tried_again(
    paths: list[Path], metrics: Metrics, caplog: pytest.LogCaptureFixture, failure: Exception | None
) -> None:
    applied, failures = [], 3

    def apply(contents: Sequence[bytes]) -> None:
        nonlocal failures
        if contents[0] == b"2" and failures:
            failures -= 1
            raise failure or CredentialsError("the trial took too long")
        applied.append(contents[0])

    files = CredentialFiles("keys", paths, apply, metrics)
    paths[0].write_bytes(b"2")
    for _ in range(6):
        files.poll()
    assert applied == [b"1", b"2"]
    assert caplog.text.count("the previous content stays in use") == 1
    assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="keys") == 3


def test_a_missing_or_refused_file_at_start_is_an_error(paths: list[Path], metrics: Metrics) -> None:
    paths[0].write_bytes(b"no")
    with pytest.raises(CredentialsError, match="refused"):
        CredentialFiles("keys", paths, Applied(), metrics)
    paths[1].unlink()
    with pytest.raises(CredentialsError, match="second cannot be read: No such file or directory"):
        CredentialFiles("keys", paths, Applied(), metrics)


EXIT_WHILE_A_DISK_HANGS = """
import asyncio, sys, threading
from pathlib import Path
from serving.security.credential_files import CredentialFiles
from serving.telemetry.metrics import Metrics
hangs = threading.Event()
def apply(contents):
    if contents[0] == b"2":
        hangs.set()
        threading.Event().wait()
async def serve():
    watching = asyncio.create_task(files.watch(0.01))
    path.write_bytes(b"2")
    while not hangs.is_set():
        await asyncio.sleep(0.01)
    watching.cancel()
path = Path(sys.argv[1])
files = CredentialFiles("keys", [path], apply, Metrics())
asyncio.run(serve())
"""


def test_a_disk_that_hangs_does_not_hold_up_the_exit(paths: list[Path]) -> None:
    assert subprocess.run([sys.executable, "-c", EXIT_WHILE_A_DISK_HANGS, paths[0]], timeout=TIMEOUT).returncode == 0


async def test_the_watch_goes_on_when_no_thread_could_be_started(
    paths: list[Path], metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 2

    async def start(work: Callable[[], bool]) -> bool:
        nonlocal failures
        if failures:
            failures -= 1
            raise RuntimeError("can't start new thread")
        return await on_disk_thread(work)

    monkeypatch.setattr("serving.security.credential_files.on_disk_thread", start)
    applied = Applied()
    watching = asyncio.create_task(CredentialFiles("keys", paths, applied, metrics).watch(0.01))
    paths[0].write_bytes(b"2")
    async with asyncio.timeout(TIMEOUT):
        while len(applied.contents) < 2:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert caplog.text.count("cannot be polled") == 1
    assert value(metrics.registry, "digits_credentials_reload_failures_total", kind="keys") == 2
