"""Two priorities, live and batch: batch gets what live leaves, and a sixteenth where live leaves nothing."""

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from serving.inference.fair_queue import FairQueue, Waiting

# Live units for each unit of batch, while both wait: batch is slow then, and never starves.
_LIVE_FOR_BATCH = 15


class Prioritized(Waiting, Protocol):
    """What waits for its turns.

    Attributes:
        batch: True for priority batch, False for live.
    """

    batch: bool


Item = TypeVar("Item", bound=Prioritized)


class Priorities(Generic[Item]):
    """Requests of both priorities, each in fair turns.

    Attributes:
        live: requests of priority live.
        batch: requests of priority batch.
    """

    def __init__(self, turn: int):
        """Starts empty, with turns of so many units."""
        self.live: FairQueue[Item] = FairQueue(turn)
        self.batch: FairQueue[Item] = FairQueue(turn)
        self._live_taken = 0  # live units since batch had its share

    def __len__(self) -> int:
        return len(self.live) + len(self.batch)

    def __iter__(self) -> Iterator[Item]:
        return iter([*self.live, *self.batch])

    def queue_of(self, request: Item) -> FairQueue[Item]:
        """Returns the queue for a request."""
        return self.batch if request.batch else self.live

    def ahead(self, request: Item) -> int:
        """Estimates the units that have their turn before the last one of a new request.

        With turns of 16, a batch request of one unit waits for at most 31 live ones, however many wait: 15, and a turn.
        If batch has just had 16 units, the request waits for up to 240 more.
        """
        if request.batch:
            ahead = self.batch.ahead(request.source, request.count)
            live = _LIVE_FOR_BATCH * (ahead + request.count) - self._live_taken + self.live.turn
            return ahead + min(live, self.live.waiting)
        ahead = self.live.ahead(request.source, request.count)
        return ahead + min(ahead // _LIVE_FOR_BATCH, self.batch.waiting)

    def take_turn(self, room: int, is_over: Callable[[Item], bool]) -> list[tuple[Item, int]]:
        """Takes the turn that is next, as `FairQueue.take_turn` does; while both priorities wait, no more than one turn."""
        both = self.live.waiting and self.batch.waiting
        first_batch = both and self._live_taken >= _LIVE_FOR_BATCH
        if both:  # a lone request would take all room, and the other priority has a share of it
            room = min(room, self.live.turn)
        for queue in (self.batch, self.live) if first_batch else (self.live, self.batch):
            taken = queue.take_turn(room, is_over)
            if taken:
                if both:
                    units = sum(count for _, count in taken)
                    self._live_taken += units if queue is self.live else -units * _LIVE_FOR_BATCH
                return taken
        return []
