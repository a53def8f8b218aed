import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from serving.errors import LoadFailed, Stopping, UnknownModel
from serving.process.message_channel import BrokenChannel, MessageChannel
from serving.process.model_changes import ModelChanges
from serving.process.shutdown import Stop
from serving.process.supervisor_link import SupervisorLink
from serving.telemetry.series_files import SeriesFiles
from tests.support.calls import TIMEOUT


class Models:
    """A worker's models: names only."""

    def __init__(self, *loaded: str):
        self.loaded = set(loaded)
        self.broken = False
        self.waiting = 0
        self.quick = ""  # a model that does not wait at the gate
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, name: str) -> None:
        await self._change(name, self.loaded.add)

    async def unload(self, name: str) -> None:
        await self._change(name, self.loaded.discard)

    async def _change(self, name: str, change: Callable[[str], None]) -> None:
        self.waiting += 1
        if name != self.quick:
            await self.gate.wait()
        self.waiting -= 1
        if name not in ("digits", "letters"):
            raise UnknownModel(f"there is no model {name!r}")
        if self.broken:
            raise LoadFailed(f"{name}: the file is broken")
        change(name)


class Team:
    """The ModelChanges of a supervisor, and workers with models of their own, connected by real channels."""

    def __init__(self) -> None:
        self.changes = ModelChanges(load_seconds=20)
        self._running: list[asyncio.Task[None]] = []
        self._channels: list[MessageChannel] = []

    async def add(self, models: Models) -> tuple[SupervisorLink, MessageChannel]:
        """Adds a worker; returns its link and the supervisor's end of its channel."""
        near, far = socket.socketpair()
        near_end, far_end = await MessageChannel.open(near), await MessageChannel.open(far)
        link = SupervisorLink(far_end, SeriesFiles(0, Path()), (), orphaned=Stop(1, 2))
        link.apply_changes()
        for name in self.changes.unloaded:
            await models.unload(name)
        self.changes.add_worker(near_end)
        self._running += [asyncio.create_task(link.follow(models)), asyncio.create_task(self._receive(near_end))]
        self._channels += [near_end, far_end]
        return link, near_end

    async def _receive(self, worker: MessageChannel) -> None:
        while (message := await worker.receive()) is not None:
            (self.changes.request if message["kind"] == "change" else self.changes.acknowledge)(worker, message)
        self.changes.remove_worker(worker)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await asyncio.gather(*self._running)


@pytest.fixture
async def team() -> AsyncIterator[Team]:
    together = Team()
    async with asyncio.timeout(TIMEOUT):
        yield together
        await together.close()


async def test_a_load_or_unload_is_answered_once_every_worker_has_applied_it(team: Team) -> None:
    first, second = Models("digits"), Models("digits")
    requester, _ = await team.add(first)
    other, _ = await team.add(second)
    second.gate.clear()
    unloading = asyncio.create_task(requester.unload("digits"))
    while first.loaded:
        await asyncio.sleep(0)
    assert not unloading.done(), "the second worker has yet to do it"
    second.gate.set()
    await unloading
    assert not second.loaded
    await other.load("digits")
    assert first.loaded == second.loaded == {"digits"}


async def test_an_error_of_any_worker_reaches_the_caller_unchanged(team: Team) -> None:
    first, second = Models("digits"), Models("digits")
    requester, _ = await team.add(first)
    await team.add(second)
    with pytest.raises(UnknownModel, match="there is no model 'shapes'"):
        await requester.unload("shapes")
    second.broken = True
    with pytest.raises(LoadFailed, match="digits: the file is broken"):
        await requester.load("digits")
    assert first.loaded == {"digits"}


async def test_a_worker_that_starts_later_starts_with_the_result_of_all_changes(team: Team) -> None:
    requester, _ = await team.add(Models("digits", "letters"))
    await requester.unload("letters")
    await requester.unload("digits")
    await requester.load("letters")
    with pytest.raises(UnknownModel):
        await requester.unload("shapes")
    late = Models("digits", "letters")
    await team.add(late)
    assert late.loaded == {"letters"}


async def test_a_change_waits_for_no_dead_worker_and_reaches_a_new_one(team: Team) -> None:
    dying, late = Models("digits"), Models("digits")
    requester, _ = await team.add(Models("digits"))
    _, channel = await team.add(dying)
    dying.gate.clear()
    late.gate.clear()
    unloading = asyncio.create_task(requester.unload("digits"))
    changes = asyncio.create_task(requester.load("letters"))
    while not (dying.waiting and len(team.changes._running) == 2):  # one in progress, the other behind it
        await asyncio.sleep(0)
    await team.add(late)
    assert not unloading.done()
    await channel.close()
    late.gate.set()
    await asyncio.gather(unloading, changes)
    assert late.loaded == {"letters"}
    dying.gate.set()


async def test_changes_wait_for_no_other_model_that_hangs(team: Team) -> None:
    first, second = Models("digits", "letters"), Models("digits", "letters")
    requester, _ = await team.add(first)
    other, _ = await team.add(second)
    second.gate.clear()
    second.quick = "letters"
    hanging = asyncio.create_task(requester.load("digits"))
    behind = asyncio.create_task(other.unload("digits"))
    while not second.waiting:
        await asyncio.sleep(0)
    await requester.unload("letters")
    assert not hanging.done()
    late = Models("digits", "letters")
    await team.add(late)
    second.gate.set()
    await asyncio.gather(hanging, behind)
    assert first.loaded == second.loaded == late.loaded == set(), "the changes of one model keep their order"
    assert not team.changes._open
    assert not team.changes._turns


async def test_a_malformed_message_of_a_worker_changes_nothing(team: Team) -> None:
    models = Models("digits")
    requester, channel = await team.add(models)
    models.gate.clear()
    loading = asyncio.create_task(requester.load("letters"))
    while not models.waiting:
        await asyncio.sleep(0)
    (number,) = team.changes._open
    for error in ("text", [], ["LoadFailed"], [1, 2], ["LoadFailed", "broken", "twice"], {"a": 1}, 0):
        with pytest.raises(BrokenChannel):
            team.changes.acknowledge(channel, {"kind": "applied", "id": number, "error": error})
    for message in ({"id": [number], "error": None}, {"id": number}, {"error": None}):
        with pytest.raises(BrokenChannel):
            team.changes.acknowledge(channel, {"kind": "applied", **message})
    good = {"kind": "change", "id": 5, "verb": "unload", "model": "digits"}
    for wrong in ({"id": "5"}, {"id": None}, {"verb": "drop"}, {"verb": None}, {"verb": ["unload"]}, {"model": 7}):
        with pytest.raises(BrokenChannel):
            team.changes.request(channel, good | wrong)
    models.gate.set()
    await loading
    assert models.loaded == {"digits", "letters"}


async def test_a_worker_drains_when_its_supervisor_ends(team: Team) -> None:
    link, channel = await team.add(Models())
    channel.send("stop", drain_seconds=3, grace_seconds=4)
    assert await link.stops.get() == Stop(3, 4)
    loading = asyncio.create_task(link.load("digits"))
    await channel.close()
    assert await link.stops.get() == Stop(1, 2)
    for call in (loading, link.unload("digits")):
        with pytest.raises(Stopping):
            await call
