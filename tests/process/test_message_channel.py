import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving.errors import UnknownModel
from serving.process import message_channel
from serving.process.message_channel import BrokenChannel, MessageChannel
from serving.process.shutdown import Stop
from serving.process.supervisor_link import SupervisorLink
from serving.telemetry.series_files import SeriesFiles
from tests.process.test_workers_start import break_workers
from tests.support.calls import TIMEOUT
from tests.support.service import service
from tests.support.workers import until


@pytest.fixture
async def ends() -> AsyncIterator[tuple[MessageChannel, MessageChannel]]:
    near, far = socket.socketpair()
    opened = await MessageChannel.open(near), await MessageChannel.open(far)
    yield opened
    for end in opened:
        await end.close()


async def test_a_text_of_any_size_arrives_cut_off(ends: tuple[MessageChannel, MessageChannel]) -> None:
    for text in ("\x01" * 3_000_000, "\ud800" * 3_000_000, "x" * 3_000_000):
        ends[0].send("failed", reason=text)
        message = await ends[1].receive()
        assert message
        assert len(message["reason"]) == message_channel._TEXT_CHARACTERS
        assert message["reason"].endswith("… (cut off)")


@pytest.mark.parametrize(
    "line", [b"x" * 20_000_000, b"nonsense\n", b"[]\n", b"{}\n", b"[" * 100_000 + b"\n", b"\xff\n", b'{"kind": 1}\n']
)
async def test_a_line_that_is_no_message_breaks_the_channel(line: bytes) -> None:
    near, far = socket.socketpair()
    channel = await MessageChannel.open(near)
    far.setblocking(False)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(far, line))
    with pytest.raises(BrokenChannel):
        await asyncio.wait_for(channel.receive(), TIMEOUT)
    sending.cancel()
    await channel.close()
    far.close()


async def test_a_name_that_no_directory_can_have_never_reaches_the_supervisor(
    ends: tuple[MessageChannel, MessageChannel],
) -> None:
    link = SupervisorLink(ends[0], SeriesFiles(0, Path()), (), orphaned=Stop(1, 2))
    for change in (link.load, link.unload):
        with pytest.raises(UnknownModel, match="there is no model with a name of 1100000 characters"):
            await change("a" * 1_100_000)


@pytest.mark.parametrize(
    "line",
    [
        *(b'{"kind": "readiness"}', b"x" * 10_000_000, b"\x00\xff", b'{"kind": "applied", "id": []}'),
        *(b'{"kind": "change", "id": 1, "verb": "drop", "model": "digits"}', b'{"kind": "change"}'),
    ],
)
async def test_a_worker_that_sends_nonsense_is_replaced_alone(tmp_path: Path, line: bytes) -> None:
    tmp_path.joinpath("line").write_bytes(line + b"\n")
    code = f"""
import pathlib
from serving.process.supervisor_link import SupervisorLink
line, marker = pathlib.Path({str(tmp_path / "line")!r}), pathlib.Path({str(tmp_path / "sent")!r})
async def send_heartbeats(self, seconds, *more):
    import asyncio
    while line.with_name("wait").exists():
        await asyncio.sleep(0.05)
    if not marker.exists():
        marker.touch()
        self._channel._writer.write(line.read_bytes())
    await asyncio.sleep(3600)
SupervisorLink.send_heartbeats = send_heartbeats
"""
    wait = tmp_path / "wait"
    wait.touch()
    with service("--workers", "2", "--drain-seconds", "0", **break_workers(tmp_path, code)) as started:
        before = set(started.workers())
        wait.unlink()
        await until(lambda: started.scrape("digits_worker_restarts_total") == 1)
        await until(lambda: started.scrape("digits_workers") == 2)
        assert len(before & set(started.workers())) == 1
        started.process.send_signal(signal.SIGTERM)
        status, log = await asyncio.to_thread(started.end)
    assert status == 0
    assert "has sent a message that can't be used, killing it" in log


async def test_a_worker_that_a_signal_ends_during_its_start_gets_another_try(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
try:
    pathlib.Path({str(tmp_path / "first")!r}).touch(exist_ok=False)
except FileExistsError:
    pass
else:
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    with service("--workers", "2", "--drain-seconds", "0", **break_workers(tmp_path, code)) as started:
        assert started.scrape("digits_workers") == 2
        os.kill(started.process.pid, signal.SIGTERM)
        status, log = await asyncio.to_thread(started.end)
    assert status == 0
    assert not re.search("Traceback", log)
