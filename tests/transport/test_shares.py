"""Who gives way when all places are taken."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, cast

import pytest
from grpc_health.v1 import health_pb2

from serving.call import Call, Source
from serving.peers import heaviest, network_of
from serving.transport import health, reflection
from serving.transport.health import Health
from serving.transport.routes import Streaming
from serving.transport.shares import Places
from tests.support.event_loop import turns


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:10.0.0.1:1234", "10.0.0.1"),
        ("ipv6:[2001:db8::1]:1234", "2001:db8::/64"),
        ("ipv6:%5B2001:db8::2%5D:1234", "2001:db8::/64"),
        ("ipv6:[::ffff:10.0.0.1]:1234", "10.0.0.1"),
        ("", ""),
    ],
)
def test_a_peer_belongs_to_a_network(peer: str, network: str) -> None:
    assert network_of(peer) == network


def test_many_small_holders_of_one_network_weigh_more_than_one_large_one() -> None:
    holders = [("10.0.0.1", 6), *[("10.0.0.2", 2)] * 3, ("10.0.0.2", 3)]
    assert heaviest(holders, lambda holder: holder[1], lambda holder: holder[0]) == ("10.0.0.2", 3)
    assert heaviest(holders, lambda holder: holder[1]) == ("10.0.0.1", 6)


class Callers:
    """Calls that take a place and wait."""

    def __init__(self, limit: int):
        self._places = Places(limit, "full")

    async def enter(self, peer: str, *, client: str = "", idle: bool = True) -> asyncio.Task[None]:
        source = Source(client, peer) if client else Call(peer=lambda: peer).source

        async def wait() -> None:
            with self._places.take(source, lambda: idle):
                await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await turns(3)
        return task


async def test_a_caller_with_most_places_gives_one_to_another_network() -> None:
    callers = Callers(4)
    hoard = [await callers.enter(f"ipv4:10.0.0.1:{port}") for port in (1, 1, 2, 3)]
    honest = [await callers.enter("ipv4:10.0.0.2:1") for _ in range(3)]
    assert [task.done() for task in honest] == [False, False, True], "two networks have half each"
    ended = [task.exception() for task in hoard if task.done()]
    assert [str(error) for error in ended] == ["full, and other clients have fewer"] * 2
    assert str(honest[2].exception()) == "full"


async def test_a_token_with_most_places_gives_one_to_another_token() -> None:
    callers = Callers(3)
    hoard = [await callers.enter(f"ipv4:10.0.0.{host}:1", client="hoarder") for host in (1, 2, 3)]
    honest = await callers.enter("ipv4:10.0.0.1:1", client="honest")
    assert [task.done() for task in [*hoard, honest]] == [True, False, False, False], "one token, many networks"


async def test_a_connection_with_most_places_gives_one_to_another_of_its_network() -> None:
    callers = Callers(3)
    hoard = [await callers.enter("ipv4:10.0.0.1:1", idle=idle) for idle in (False, True, False)]
    honest = [await callers.enter("ipv4:10.0.0.1:2")]
    assert [task.done() for task in hoard] == [False, True, False], "what has no work to lose gives way"
    honest += [await callers.enter(f"ipv4:10.0.0.1:{port}") for port in (3, 4)]
    assert [task.done() for task in hoard] == [True, True, False]
    assert [task.done() for task in honest] == [False, False, True], "each connection has one"
    assert str(hoard[1].exception()) == "full, and other clients have fewer"
    assert [str(task.exception()) for task in (hoard[0], honest[2])] == ["full, and other clients have fewer", "full"]


async def test_a_place_is_free_again_once_its_call_is_cancelled() -> None:
    callers = Callers(1)
    first = await callers.enter("ipv4:10.0.0.1:1")
    first.cancel()
    await turns(3)
    assert first.cancelled()
    assert not (await callers.enter("ipv4:10.0.0.1:1")).done()


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def nowhere(_: bytes) -> None:
    pass


@pytest.mark.parametrize(
    "handler",
    [
        lambda: Health().handlers()[f"/{health.NAME}/Watch"],
        lambda: reflection.handlers([])[f"/{reflection.NAMES[0]}/ServerReflectionInfo"],
    ],
)
async def test_public_streams_without_a_message_are_bounded_and_shared(handler: Any) -> None:
    run = cast(Streaming, handler()).run

    def begin(peer: str) -> asyncio.Task[None]:
        async def work(done: Awaitable[None]) -> None:
            await done

        return asyncio.create_task(work(run(never(), nowhere, Call(peer=lambda: peer))))

    hoard = [begin("ipv4:10.0.0.1:1") for _ in range(300)]
    await turns(5)
    assert sum(not task.done() for task in hoard) == 100
    honest = begin("ipv4:10.0.0.2:1")
    await turns(5)
    assert not honest.done()
    assert sum(not task.done() for task in hoard) == 99
    for task in [honest, *hoard]:
        task.cancel()
    await asyncio.gather(honest, *hoard, return_exceptions=True)


async def test_a_changed_status_reaches_a_watch_that_keeps_its_place() -> None:
    statuses: list[int] = []

    async def one() -> AsyncIterator[bytes]:
        yield b""

    async def take(answer: bytes) -> None:
        statuses.append(health_pb2.HealthCheckResponse.FromString(answer).status)

    checked = Health()
    watch = cast(Streaming, checked.handlers()[f"/{health.NAME}/Watch"])

    async def work() -> None:
        await watch.run(one(), take, Call())

    task = asyncio.create_task(work())
    await turns(5)
    checked.set("", health_pb2.HealthCheckResponse.SERVING)
    await turns(5)
    assert statuses == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN, health_pb2.HealthCheckResponse.SERVING]
    task.cancel()
