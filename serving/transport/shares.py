"""Who gives way when what all callers share runs out: whoever has most of it.

Shares are compared by network first, which one client can't multiply, and then by connection: many honest clients may stand
behind one address.
"""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

from serving.errors import TooBusy

Holder = TypeVar("Holder")


def network(host: str) -> str:
    """Returns what counts as one client: an IPv4 address, or an IPv6 network of 64 bits, which one client owns."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))


def network_of(peer: str) -> str:
    """Returns the network of an address as gRPC writes it, such as "ipv4:10.0.0.1:1234" or "ipv6:[::1]:1234"."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0]  # gRPC's own front writes %5B for [
    return network(host.strip("[]"))


def heaviest(holders: Iterable[Holder], weight: Callable[[Holder], int], *groups: Callable[[Holder], Hashable]) -> Holder:
    """Returns the holder with most, in the group that has most together, in each grouping in turn.

    Args:
        holders: at least one.
        weight: what a holder has.
        groups: name the group of a holder, the widest groups first.
    """
    among = [*holders]
    for group in groups:
        sums: Counter[Hashable] = Counter()
        for holder in among:
            sums[group(holder)] += weight(holder)
        most = max(sums, key=lambda name: sums[name])
        among = [holder for holder in among if group(holder) == most]
    return max(among, key=weight)


class Place:
    """What one call takes while it is open.

    Attributes:
        peer: the caller's address and port, as gRPC writes it: its connection.
        network: the caller's network.
        held: bytes that the call keeps in memory.
        idle: returns True while the call has no work to lose.
    """

    def __init__(self, peer: str, idle: Callable[[], bool]):
        self.peer = peer
        self.network = network_of(peer)
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
        self._networks: Counter[str] = Counter()  # counts, so that a refusal costs little: a flood has many
        self._connections: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Place]:
        """Yields the places that are taken."""
        return iter(self._taken)

    @contextmanager
    def take(self, peer: str, idle: Callable[[], bool] = lambda: True) -> Iterator[Place]:
        """Gives the running task a place, at the cost of a caller with at least two more if all are taken.

        Args:
            peer: the caller's address and port.
            idle: returns True while the call has no work to lose. Such calls give way first.

        Raises:
            TooBusy: there is no place; or another caller needs it, which cancels the task where it waits.
        """
        if len(self._taken) >= self._limit:
            self._make_room(peer)
        place = Place(peer, idle)
        self._taken[place] = None
        self._networks[place.network] += 1
        self._connections[peer] += 1
        try:
            with place.kept():
                yield place
        finally:
            self._free(place)

    def _free(self, place: Place) -> None:
        if place in self._taken:
            del self._taken[place]
            for counts, name in ((self._networks, place.network), (self._connections, place.peer)):
                counts[name] -= 1
                if not counts[name]:
                    del counts[name]

    def _make_room(self, peer: str) -> None:
        own = network_of(peer)
        network = max(self._networks, key=lambda name: self._networks[name])
        if self._networks[network] < self._networks[own] + 2:
            network = own
        if network == own and max(self._connections.values()) < self._connections[peer] + 2:
            raise TooBusy(self._full)
        sizes = {place.peer: self._connections[place.peer] for place in self._taken if place.network == network}
        connection = max(sizes, key=lambda name: sizes[name], default=peer)
        if network == own and self._connections[connection] < self._connections[peer] + 2:
            raise TooBusy(self._full)
        candidates = [place for place in self._taken if place.peer == connection]
        victim = next((place for place in candidates if place.idle()), candidates[0])
        self._free(victim)
        victim.lose(TooBusy(f"{self._full}, and other clients have fewer"))
