"""Turns of the two priorities, and the estimate of what comes before a request."""

from dataclasses import dataclass

import pytest

from serving.call import Source
from serving.inference.priorities import Priorities

TURN = 16
ROOM = 8 * TURN


@dataclass(eq=False)
class Ticket:
    """A request of some units."""

    source: Source
    count: int
    batch: bool
    taken: int = 0


def ticket(client: str, count: int, *, batch: bool) -> Ticket:
    return Ticket(Source(client, "1"), count, batch)


def queues(*tickets: Ticket) -> Priorities[Ticket]:
    both: Priorities[Ticket] = Priorities(TURN)
    for one in tickets:
        both.queue_of(one).add(one)
    return both


def take_run(both: Priorities[Ticket]) -> list[Ticket]:
    """Takes the units of one run; returns the request of each."""
    run: list[Ticket] = []
    while len(run) < ROOM and (turn := both.take_turn(ROOM - len(run), lambda _: False)):
        for one, units in turn:
            run += [one] * units
    return run


def take_all(both: Priorities[Ticket]) -> list[Ticket]:
    taken: list[Ticket] = []
    while run := take_run(both):
        taken += run
    return taken


def live_requests(clients: int, count: int) -> list[Ticket]:
    return [ticket(f"live {number}", count, batch=False) for number in range(clients)]


@pytest.mark.parametrize("runs_before", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("live", [live_requests(1, 5000), live_requests(3000, 1)], ids=["one-request", "many-requests"])
@pytest.mark.parametrize("bulk", [0, 40, 4000])
@pytest.mark.parametrize("count", [1, 16, 50])
def test_batch_waits_for_the_live_units_that_its_turns_leave(
    count: int, bulk: int, live: list[Ticket], runs_before: int
) -> None:
    others = [ticket("bulk", bulk, batch=True)] if bulk else []
    both = queues(*[ticket(one.source.client, one.count, batch=False) for one in live], *others)
    for _ in range(runs_before):
        take_run(both)
    mine = ticket("mine", count, batch=True)
    ahead = both.ahead(mine)
    both.batch.add(mine)
    taken = take_all(both)
    came_first = max(place for place, one in enumerate(taken) if one is mine) + 1 - count
    assert came_first <= ahead <= came_first + 16 * 2 * TURN


@pytest.mark.parametrize("requests", [1, 2, 20])
def test_batch_gets_a_sixteenth_however_many_requests_it_has(requests: int) -> None:
    bulk = [ticket(f"bulk {number}", 10_000 // requests, batch=True) for number in range(requests)]
    both = queues(*live_requests(1000, 3), *bulk)
    runs = [take_run(both) for _ in range(20)]
    shares = [sum(one.batch for one in run) for run in runs]
    assert max(shares) < 2 * TURN, "a turn, and what live requests of three units leave"
    assert sum(shares) == pytest.approx(20 * ROOM / 16, abs=TURN)


def test_a_lone_live_request_leaves_batch_its_sixteenth() -> None:
    both = queues(ticket("live", 5000, batch=False), ticket("bulk", 5000, batch=True))
    taken = [one.batch for _ in range(20) for one in take_run(both)]
    assert sum(taken) == pytest.approx(20 * ROOM / 16, abs=TURN)


def test_a_lone_request_gets_the_whole_run_where_the_other_priority_is_empty() -> None:
    both = queues(ticket("bulk", 5000, batch=True))
    assert len(both.take_turn(ROOM, lambda _: False)) == 1
    assert both.batch.waiting == 5000 - ROOM
