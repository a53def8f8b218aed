"""Turns: of clients, of their connections, and of the requests of a connection."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from serving.call import Source
from serving.inference.fair_queue import FairQueue

TURN = 4


@dataclass(eq=False)
class Ticket:
    """A request of some units."""

    source: Source
    count: int
    taken: int = 0
    over: bool = field(default=False)


def source(client: str, connection: str = "1") -> Source:
    return Source(client, connection)


def queue_of(*tickets: Ticket) -> FairQueue[Ticket]:
    queue: FairQueue[Ticket] = FairQueue(TURN)
    for ticket in tickets:
        queue.add(ticket)
    return queue


def take(queue: FairQueue[Ticket], units: int) -> list[Ticket]:
    """Takes this many units in turns; returns the request of each."""
    taken: list[Ticket] = []
    while len(taken) < units and (turn := queue.take_turn(units - len(taken), lambda ticket: ticket.over)):
        for ticket, count in turn:
            taken += [ticket] * count
    return taken


def clients(taken: list[Ticket]) -> Counter[str]:
    return Counter(ticket.source.client for ticket in taken)


def test_clients_get_the_same_however_many_requests_each_has() -> None:
    queue = queue_of(*[Ticket(source("greedy"), 50) for _ in range(20)], Ticket(source("polite"), 40))
    assert clients(take(queue, 80)) == {"greedy": 40, "polite": 40}


def test_clients_get_the_same_however_many_connections_each_has() -> None:
    greedy = [Ticket(source("greedy", str(number)), 50) for number in range(20)]
    assert clients(take(queue_of(*greedy, Ticket(source("polite"), 40)), 80)) == {"greedy": 40, "polite": 40}


def test_connections_of_a_client_get_the_same() -> None:
    tickets = [Ticket(source("one", "bulk"), 50) for _ in range(9)] + [Ticket(source("one", "other"), 20)]
    taken = take(queue_of(*tickets), 40)
    assert Counter(ticket.source.connection for ticket in taken) == {"bulk": 20, "other": 20}


def test_requests_of_a_connection_take_turns() -> None:
    large, small = Ticket(source("one"), 100), Ticket(source("one"), 2)
    assert take(queue_of(large, small), 8) == [large] * 4 + [small] * 2 + [large] * 2


def test_a_client_that_comes_is_next_and_one_that_comes_again_waits() -> None:
    queue = queue_of(*[Ticket(source(f"bulk {number}"), 100) for number in range(8)])
    take(queue, 40)
    for _ in range(5):
        first = Ticket(source("late"), 1)
        queue.add(first)
        assert take(queue, 1) == [first], "of four units that are a turn"
    queue.add(Ticket(source("late"), 100))
    assert clients(take(queue, 36))["late"] == 4


def test_a_client_saves_up_no_turns_while_it_is_away() -> None:
    queue = queue_of(Ticket(source("busy"), 1000), Ticket(source("away"), 4))
    take(queue, 408)
    queue.add(Ticket(source("away"), 1000))
    assert clients(take(queue, 40))["away"] <= 24


def test_a_costly_turn_delays_the_next_one() -> None:
    queue = queue_of(Ticket(source("costly"), 100), Ticket(source("cheap"), 100))
    assert clients(take(queue, TURN)) == {"costly": 4}
    queue.charge(source("costly"), 36.0)
    assert clients(take(queue, 40)) == {"cheap": 40}


def test_a_request_within_a_turn_is_never_split() -> None:
    first, second = Ticket(source("one"), 3), Ticket(source("two"), 3)
    queue = queue_of(first, second)
    assert take(queue, 5) == [first] * 3
    assert take(queue, 2) == []
    assert take(queue, 3) == [second] * 3


def test_a_lone_request_gets_all_room() -> None:
    assert len(queue_of(Ticket(source("one"), 100)).take_turn(90, lambda _: False)) == 1


def test_requests_that_are_over_leave_without_a_turn() -> None:
    over = [Ticket(source(name), 3, over=True) for name in ("one", "one", "two")]
    last = Ticket(source("three"), 1)
    queue = queue_of(*over, last)
    assert take(queue, 10) == [last]
    assert (len(queue), queue.waiting) == (0, 0)
    queue.add(over[0])
    assert queue.take_turn(10, lambda ticket: ticket.over) == []


def test_a_dropped_request_has_no_turn() -> None:
    stays, leaves = Ticket(source("one"), 10), Ticket(source("one"), 10)
    queue = queue_of(stays, leaves)
    take(queue, 2 * TURN)
    assert queue.drop(leaves)
    assert not queue.drop(leaves)
    assert not queue.drop(Ticket(source("nobody"), 1))
    assert queue.waiting == 6
    assert take(queue, 100) == [stays] * 6


def test_clearing_returns_what_waits() -> None:
    tickets = [Ticket(source(name), 5) for name in ("one", "two")]
    queue = queue_of(*tickets)
    assert queue.clear() == tickets
    assert (len(queue), queue.waiting, queue.ahead(source("three"), 1)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("waiting", "count", "ahead"),
    [
        ([], 1, 0),
        ([(source("bulk"), 1000)], 1, 4),
        ([(source("bulk"), 1000)], 8, 8),
        ([(source("bulk"), 3)], 8, 3),
        ([(source("bulk", str(number)), 1000) for number in range(50)], 1, 4),
        ([(source("polite", "2"), 1000)], 1, 4),
        ([(source("polite"), 1)] * 3, 1, 3),
        ([(source("polite"), 1000)], 1, 4 + 0),
        ([(source("polite"), 1000), (source("bulk"), 1000)], 1, 4 + 8),
        ([(source(str(number)), 1) for number in range(90)], 1, 90),
    ],
)
def test_the_estimate_counts_what_has_its_turn_first(waiting: list[tuple[Source, int]], count: int, ahead: int) -> None:
    queue = queue_of(*[Ticket(who, units) for who, units in waiting])
    assert queue.ahead(source("polite"), count) == ahead


@pytest.mark.parametrize("count", [1, 5, 30])
def test_no_more_comes_first_than_was_estimated(count: int) -> None:
    bulk = [Ticket(source(client, connection), 40) for client in "abc" for connection in "12" for _ in range(3)]
    queue = queue_of(*bulk, Ticket(source("a", "3"), 7))
    take(queue, 50)
    mine = Ticket(source("a", "3"), count)
    ahead = queue.ahead(mine.source, count)
    queue.add(mine)
    taken = take(queue, queue.waiting)
    last = max(place for place, ticket in enumerate(taken) if ticket is mine)
    assert last + 1 - count <= ahead


def test_who_has_most_gives_way_and_loses_what_is_newest() -> None:
    oldest, newer = Ticket(source("greedy"), 10), Ticket(source("greedy"), 10)
    queue = queue_of(oldest, newer, Ticket(source("other"), 9))
    assert queue.heavier_than(source("polite"), 1, 1) is newer
    take(queue, 2 * TURN)
    assert queue.heavier_than(source("polite"), 1, 1) is newer, "which had no turn"
    assert queue.heavier_than(source("greedy", "2"), 3, 3) is newer, "a connection of the same client"


def test_a_client_that_would_have_most_itself_gives_way() -> None:
    queue = queue_of(Ticket(source("one"), 10), Ticket(source("two"), 10))
    assert queue.heavier_than(source("one"), 1, 1) is None
    assert queue.heavier_than(source("three"), 6, 6) is None
    assert queue.heavier_than(source("three"), 5, 5) is not None
    assert queue_of().heavier_than(source("one"), 1, 1) is None


def test_many_clients_that_left_are_forgotten() -> None:
    queue = queue_of(Ticket(source("stays"), 100_000))
    for number in range(5000):
        queue.add(Ticket(source(str(number)), 1))
        take(queue, 2 * TURN)
    assert len(queue._clients.shares) < 2500
    assert queue.waiting == sum(ticket.count - ticket.taken for ticket in queue)
