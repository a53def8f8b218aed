"""The queue of a batcher: entries take turns, so that a large request does not hold up small ones."""

import time
from collections import OrderedDict
from collections.abc import Iterator

from serving.errors import DeadlineExceeded
from serving.inference.batch import Slice, fail
from serving.inference.entry import Entry
from serving.telemetry.version_metrics import VersionMetrics


class EntryQueue:
    """Entries that wait for a run, in order of turn.

    Attributes:
        waiting: images in the queue.
        turn: a large request gets this many images into a batch before the next request has its turn.
    """

    def __init__(self, metrics: VersionMetrics, max_batch_size: int):
        """Starts empty.

        Args:
            metrics: counts entries that are late.
            max_batch_size: images in one batch, at most.
        """
        self.waiting = 0
        self.turn = max(1, max_batch_size // 8)
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._entries: OrderedDict[Entry, None] = OrderedDict()  # a dict, so that any entry can leave

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter([*self._entries])

    @property
    def next(self) -> Entry:
        """The entry whose turn is next."""
        return next(iter(self._entries))

    def add(self, entry: Entry) -> None:
        """Queues an entry."""
        self._entries[entry] = None
        self.waiting += entry.count

    def drop(self, entry: Entry) -> bool:
        """Drops an entry; returns False if it was not in the queue."""
        if entry not in self._entries:
            return False
        del self._entries[entry]
        self.waiting -= entry.count - entry.taken
        return True

    def take_batch(self) -> list[Slice]:
        """Takes up to a batch of images off the queue, entry by entry in turns, and drops late entries."""
        now = time.monotonic()
        room = self._max_batch_size
        batch = []
        while self._entries:
            entry = self.next
            if entry.deadline <= now:
                fail(entry, DeadlineExceeded("the deadline passed while the request waited"), self._metrics)
            if entry.done:  # late, failed in another run, or its caller has gone
                self.drop(entry)
                continue
            left = entry.count - entry.taken
            share = room if len(self._entries) == 1 else min(room, self.turn)
            size = left if left <= self.turn else min(left, share)  # a request within one turn is never split
            if not 0 < size <= room:
                break
            if entry.taken == 0:
                entry.started = now
            batch.append(Slice(entry, entry.taken, entry.taken + size))
            entry.taken += size
            self.waiting -= size
            room -= size
            if size == left:
                del self._entries[entry]
            else:
                self._entries.move_to_end(entry)
        return batch
