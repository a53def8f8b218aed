"""Who gives way when what all callers share runs out: whoever has most of it.

Shares are compared by client first, which is a token or a network, and then by connection: many honest clients may stand
behind one address.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from serving.call import Source
from serving.errors import TooBusy

Name = TypeVar("Name", bound=Hashable)


class Place:
    """What one call takes while it is open.

    Attributes:
        source: the client, and its connection.
        held: bytes that the call keeps in memory.
        idle: returns True while the call has no work to lose.
    """

    def __init__(self, source: Source, idle: Callable[[], bool]):
        self.source = source
        self.held = 0
        self.idle = idle
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._error: TooBusy | None = None

    @property
    def lost(self) -> bool:
        """True once the call is ending because of `lose`."""
        return self._error is not None

    def lose(self, error: TooBusy) -> None:
        """Ends the call with an error."""
        if self._task and not self._error:
            self._error = error
            self._task.cancel()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Raises the error of `lose` where the call was, in place of the cancellation."""
        try:
            yield
        except asyncio.CancelledError:
            if not self._error or not self._task:
                raise
            self._task.uncancel()
            raise self._error from None


class Places:
    """A number of places for calls that last as long as their callers like."""

    def __init__(self, limit: int, full: str):
        """Starts empty.

        Args:
            limit: number of places.
            full: says that all are taken.
        """
        self._limit = limit
        self._full = full
        self._taken: dict[Place, None] = {}  # a set in the order of arrival
        self._clients: Counter[str] = Counter()  # counts, so that a refusal costs little: a flood has many
        self._connections: Counter[Source] = Counter()

    def __iter__(self) -> Iterator[Place]:
        """Yields the places that are taken."""
        return iter(self._taken)

    @contextmanager
    def take(self, source: Source, idle: Callable[[], bool] = lambda: True) -> Iterator[Place]:
        """Gives the running task a place, at the cost of a caller with at least two more if all are taken.

        Args:
            source: the client, and its connection.
            idle: returns True while the call has no work to lose. Such calls give way first.

        Raises:
            TooBusy: there is no place; or another caller needs it, which cancels the task where it waits.
        """
        if len(self._taken) >= self._limit:
            self._make_room(source)
        place = Place(source, idle)
        self._taken[place] = None
        self._clients[source.client] += 1
        self._connections[source] += 1
        try:
            with place.kept():
                yield place
        finally:
            self._free(place)

    def _free(self, place: Place) -> None:
        if place in self._taken:
            del self._taken[place]
            _subtract(self._clients, place.source.client)
            _subtract(self._connections, place.source)

    def _make_room(self, source: Source) -> None:
        client = max(self._clients, key=lambda name: self._clients[name])
        if self._clients[client] < self._clients[source.client] + 2:
            client = source.client
        own = self._connections[source]
        if client == source.client and max(self._connections.values()) < own + 2:
            raise TooBusy(self._full)
        sizes = {place.source: self._connections[place.source] for place in self._taken if place.source.client == client}
        connection = max(sizes, key=lambda name: sizes[name], default=source)
        if client == source.client and self._connections[connection] < own + 2:
            raise TooBusy(self._full)
        candidates = [place for place in self._taken if place.source == connection]
        victim = next((place for place in candidates if place.idle()), candidates[0])
        self._free(victim)
        victim.lose(TooBusy(f"{self._full}, and other clients have fewer"))


def _subtract(counts: Counter[Name], name: Name) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
