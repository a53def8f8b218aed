import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import serving
from serving.child_process import kill, python_path
from tests.support.calls import TIMEOUT


@pytest.fixture
def reaped_by_the_loop() -> Iterator[None]:
    """Has asyncio ask for exit statuses on the event loop, as it does from Python 3.12 on, not on a thread."""
    if sys.version_info >= (3, 12):
        yield
    else:
        before = asyncio.get_child_watcher()
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
        yield
        asyncio.set_child_watcher(before)


@pytest.mark.usefixtures("reaped_by_the_loop")
async def test_a_killed_child_leaves_its_exit_status_to_who_waits_for_it() -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60")
    kill(child)
    # It has ended, and nobody has asked for its status: the event loop must not have run.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    kill(child)
    assert await asyncio.wait_for(child.wait(), TIMEOUT) == -9
    kill(child)


@pytest.mark.parametrize("others", ["", "elsewhere"])
async def test_a_child_imports_this_package_from_any_working_directory(
    others: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "serving.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", others)
    code = "import serving, sys; print(serving.__file__, 'elsewhere' in sys.path[1].split('/'))"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", code),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": python_path()},
        cwd=tmp_path,
    )
    printed, _ = await asyncio.wait_for(child.communicate(), TIMEOUT)
    assert printed.decode().split() == [serving.__file__, str(bool(others))]
