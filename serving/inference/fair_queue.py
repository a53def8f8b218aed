"""A queue in which clients take turns, then the connections of a client, then the requests of a connection.

    queue    who has had least?  -> client
    client   which of its connections has had least?  -> connection
    connection   its requests, one turn each, round-robin

Neither more requests nor more connections get a client more turns. Who comes back after a pause is next, but the pause saves
up no turns. Sources: start-time fair queueing, Goyal, Vin and Cheng, 1996; and new flows first, RFC 8290 (FQ-CoDel).
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

from serving.call import Source

_REMEMBERED = 1024  # idle shares of a level: those who have just had a turn come back in their place


class Waiting(Protocol):
    """What waits for its turns.

    Attributes:
        count: units of the request, such as images.
        taken: units that have had their turn.
    """

    count: int
    taken: int

    @property
    def source(self) -> Source:
        """The client, and its connection."""


Item = TypeVar("Item", bound=Waiting)


class _Share:
    """The part of a queue that one client has, or one connection of it.

    Attributes:
        waiting: units that wait.
        in_one_turn: units that wait, without what each of its members has beyond one turn.
        had: units that it has had, counted on from what the others had when it entered.
        start: what it has when its next turn begins, by which turns are ordered.
        listed: True while the share is in the list of its level.
    """

    __slots__ = ("had", "in_one_turn", "listed", "start", "waiting")

    def __init__(self) -> None:
        self.waiting = self.in_one_turn = 0
        self.had = self.start = 0.0
        self.listed = False

    def move_on(self, units: float) -> None:
        """Moves the next turn on by what this one has cost."""
        self.had += units
        self.start = self.had


class _Connection(_Share, Generic[Item]):
    __slots__ = ("requests",)

    def __init__(self) -> None:
        super().__init__()
        self.requests: OrderedDict[Item, None] = OrderedDict()  # a dict, so that any request can leave


class _Client(_Share, Generic[Item]):
    __slots__ = ("connections",)

    def __init__(self, turn: int) -> None:
        super().__init__()
        self.connections: _Level[_Connection[Item]] = _Level(_Connection, turn)


Share = TypeVar("Share", bound=_Share)


class _Level(Generic[Share]):
    """The shares of all clients, or of all connections of a client, in order of turn."""

    __slots__ = ("_entered", "_had", "_list", "_new", "_relisted", "_room", "_turn", "shares")

    def __init__(self, new: Callable[[], Share], turn: int):
        self.shares: dict[str, Share] = {}
        self._new = new
        self._turn = turn
        # A heap: start, order among equal starts, share. A share that was charged meanwhile is put right in `next`.
        self._list: list[tuple[float, int, Share]] = []
        self._entered = itertools.count(-(1 << 60))  # who enters comes before all others with the same start
        self._relisted = itertools.count()
        self._had = 0.0  # what those who have left had
        self._room = _REMEMBERED

    def enter(self, name: str) -> Share:
        """Returns the share of this name, which is in the list now: next, unless it is a turn ahead of the others.

        So a caller of one image at a time is always next, however many others wait.
        """
        share = self.shares.get(name)
        if share is None:
            if len(self.shares) >= self._room:
                self.shares = {other: share for other, share in self.shares.items() if share.waiting}
                self._room = len(self.shares) + _REMEMBERED
            share = self.shares[name] = self._new()
        if not share.waiting:
            first = self.next()
            others_had = first.start if first else self._had
            share.had = max(share.had, others_had)
            share.start = max(share.had - self._turn, others_had)
            if not share.listed:
                share.listed = True
                heappush(self._list, (share.start, next(self._entered), share))
        return share

    def next(self) -> Share | None:
        """Returns the share whose turn it is."""
        while self._list:
            start, _, share = self._list[0]
            if not share.waiting:
                share.listed = False
                heappop(self._list)
                self._had = max(self._had, share.had)
            elif start < share.start:
                heapreplace(self._list, (share.start, next(self._relisted), share))
            else:
                return share
        return None


class FairQueue(_Share, Generic[Item]):
    """Requests in order of turn.

    Attributes:
        waiting: units that wait.
        turn: units that a connection gets before another has its turn. A smaller request is never split.
    """

    __slots__ = ("_clients", "_requests", "turn")

    def __init__(self, turn: int):
        """Starts empty, with turns of so many units."""
        super().__init__()
        self.turn = turn
        self._clients: _Level[_Client[Item]] = _Level(partial(_Client, self.turn), self.turn)
        self._requests = 0

    def __len__(self) -> int:
        return self._requests

    def __iter__(self) -> Iterator[Item]:
        clients = self._clients.shares.values()
        connections = [connection for client in clients for connection in client.connections.shares.values()]
        return iter([request for connection in connections for request in connection.requests])

    def add(self, request: Item) -> None:
        """Queues a request."""
        source = request.source
        client = self._clients.enter(source.client)
        connection = client.connections.enter(source.connection)
        connection.requests[request] = None
        self._requests += 1
        self._count(client, connection, 0, request.count - request.taken)

    def drop(self, request: Item) -> bool:
        """Drops a request; returns False if it was not in the queue."""
        client, connection = self._shares(request.source)
        if request not in connection.requests:
            return False
        self._remove(client, connection, request)
        return True

    def clear(self) -> list[Item]:
        """Returns all requests, and empties the queue."""
        requests = [*self]
        self._clients = _Level(partial(_Client, self.turn), self.turn)
        self.waiting = self.in_one_turn = self._requests = 0
        return requests

    def take_turn(self, room: int, is_over: Callable[[Item], bool]) -> list[tuple[Item, int]]:
        """Takes what the connection gets whose turn it is, charges it for that, and moves its requests on.

        Args:
            room: units, at most. A queue with a single request gives more than a turn of it.
            is_over: returns True for a request that needs no turn any more. It leaves the queue.

        Returns:
            Requests of one connection with their units in this turn; none if the next one does not fit, or none is left.
        """
        turn, room = self.turn, room if self._requests == 1 else min(room, self.turn)
        taken: list[tuple[Item, int]] = []
        while not taken and (client := self._clients.next()) and (connection := client.connections.next()):
            before = room
            while room and connection.requests:
                request = next(iter(connection.requests))
                if is_over(request):
                    self._remove(client, connection, request)
                    continue
                left = request.count - request.taken
                units = left if left <= turn else min(left, room)
                if units > room:
                    break
                room -= units
                taken.append((request, units))
                if units == left:
                    self._remove(client, connection, request)
                else:
                    connection.requests.move_to_end(request)
                    self._count(client, connection, left, left - units)
                request.taken += units
            client.move_on(before - room)
            connection.move_on(before - room)
            if connection.requests:
                break
        return taken

    def charge(self, source: Source, units: float) -> None:
        """Charges a client and its connection for a turn that has cost more than its units."""
        for share in self._shares(source):
            share.move_on(units)

    def ahead(self, source: Source, count: int) -> int:
        """Estimates the units that have their turn before the last of `count` more units of a source."""
        client, connection = self._shares(source)
        ahead = 0
        for own, whole in ((_Share(), connection), (connection, client), (client, self)):
            turns = -(-(ahead + count) // self.turn)
            others = whole.waiting - own.waiting
            ahead += min(others, turns * (whole.in_one_turn - min(own.waiting, self.turn)))
        return ahead

    def heavier_than(self, source: Source, units: int, room: int) -> Item | None:
        """Returns a request that gives way to one of a source: the newest, if possible without a turn yet, of who has most.

        Args:
            source: the client, and its connection.
            units: units of its request.
            room: units that the others have to lose.

        Returns:
            A request of the connection with most, of the client with most. None if these would have less than the source.
        """
        own, mine = self._shares(source)
        largest = max(self._clients.shares.values(), key=_waiting, default=own)
        if largest.waiting - room < own.waiting + units:
            largest = own
        connection = max(largest.connections.shares.values(), key=_waiting, default=mine)
        if not connection.requests or (largest is own and connection.waiting - room < mine.waiting + units):
            return None
        requests = connection.requests
        return next((request for request in reversed(requests) if not request.taken), next(reversed(requests)))

    def _shares(self, source: Source) -> tuple[_Client[Item], _Connection[Item]]:
        """Returns the shares of a source; new ones, which are in no list, where it has none."""
        client = self._clients.shares.get(source.client) or _Client(self.turn)
        return client, client.connections.shares.get(source.connection) or _Connection()

    def _remove(self, client: _Client[Item], connection: _Connection[Item], request: Item) -> None:
        del connection.requests[request]
        self._requests -= 1
        self._count(client, connection, request.count - request.taken, 0)

    def _count(self, client: _Client[Item], connection: _Connection[Item], before: int, after: int) -> None:
        """Counts that a request with `before` units waiting has `after` now. Most requests have one."""
        turn, more = self.turn, after - before
        connection.in_one_turn += more if before <= turn and after <= turn else min(after, turn) - min(before, turn)
        was = connection.waiting
        now = connection.waiting = was + more
        client.in_one_turn += more if was <= turn and now <= turn else min(now, turn) - min(was, turn)
        was = client.waiting
        now = client.waiting = was + more
        self.in_one_turn += more if was <= turn and now <= turn else min(now, turn) - min(was, turn)
        self.waiting += more


def _waiting(share: _Share) -> int:
    return share.waiting
