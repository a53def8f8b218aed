"""The queue of a batcher: live requests before batch ones, each kind in fair turns."""

import time
from collections.abc import Callable, Iterator

from serving.errors import DeadlineExceeded, queue_full
from serving.inference.batch import Slice, fail
from serving.inference.entry import Entry
from serving.inference.priorities import Priorities
from serving.telemetry.version_metrics import VersionMetrics


class EntryQueue:
    """Entries that wait for a run.

    As long as all of them fit into one batch, their order means nothing: live entries are sorted into turns only once more
    of them wait.

    Attributes:
        waiting: images in the queue.
        batch: entries of priority batch.
    """

    def __init__(self, metrics: VersionMetrics, max_batch_size: int):
        """Starts empty.

        Args:
            metrics: counts entries that are late.
            max_batch_size: images in one batch, at most.
        """
        self.waiting = 0
        turn = max(1, max_batch_size // 8)
        self._sorted: Priorities[Entry] = Priorities(turn)
        self.batch = self._sorted.batch
        self._unsorted: dict[Entry, None] = {}  # live entries; a dict, so that any of them can leave
        self._metrics = metrics
        self._max_batch_size = max_batch_size

    def __len__(self) -> int:
        return len(self._unsorted) + len(self._sorted)

    def __iter__(self) -> Iterator[Entry]:
        return iter([*self._sorted, *self._unsorted])

    @property
    def turn(self) -> int:
        """Images that a connection gets into a batch before another has its turn."""
        return self._sorted.live.turn

    def add(self, entry: Entry) -> None:
        """Queues an entry."""
        self.waiting += entry.count
        if entry.batch:
            self.batch.add(entry)
        else:
            self._unsorted[entry] = None

    def drop(self, entry: Entry) -> bool:
        """Drops an entry; returns False if it was not in the queue."""
        if entry in self._unsorted:
            del self._unsorted[entry]
        elif not self._sorted.queue_of(entry).drop(entry):
            return False
        self.waiting -= entry.count - entry.taken
        return True

    def waiting_with(self, entry: Entry) -> int:
        """Returns the images that wait with the priority of an entry."""
        return self.batch.waiting if entry.batch else self.waiting - self.batch.waiting

    def ahead(self, entry: Entry) -> int:
        """Estimates the images that are read before the last one of a new entry."""
        self._sort()
        in_its_batch = min(self._max_batch_size - entry.count, self.waiting)
        return max(self._sorted.ahead(entry), in_its_batch)

    def make_room(self, entry: Entry, images: int, retry_after_seconds: float) -> bool:
        """Makes room for an entry: clients with more images of its priority lose some, with QueueFull.

        Args:
            entry: not in the queue yet.
            images: images to make room for.
            retry_after_seconds: the hint to those who lose.

        Returns:
            False if the client would have most itself then, and so has to give way.
        """
        self._sort()
        queue = self._sorted.queue_of(entry)
        while images > 0:
            largest = queue.heavier_than(entry.source, entry.count, images)
            if largest is None:
                return False
            images -= largest.count - largest.taken
            self.drop(largest)
            message = "the queue is full, and other clients have fewer images in it"
            error = queue_full(message, retry_after_seconds, batch=largest.batch)
            fail(largest, error, self._metrics)
        return True

    def take_batch(self) -> list[Slice]:
        """Takes up to a batch of images off the queue, and drops late entries."""
        now = time.monotonic()

        def is_over(entry: Entry) -> bool:
            """Fails a late entry. Returns True also for one that failed in another run, or whose caller has gone."""
            if entry.deadline <= now:
                fail(entry, DeadlineExceeded("the deadline passed while the request waited"), self._metrics)
            return entry.done

        if self.waiting > self._max_batch_size:
            return self._take_turns(now, is_over)
        entries = [*self._sorted.live.clear(), *self.batch.clear()] if len(self._sorted) else []
        entries.extend(self._unsorted)
        self._unsorted.clear()
        self.waiting = 0
        batch = []
        for entry in entries:
            if not is_over(entry):
                if not entry.taken:
                    entry.started = now
                batch.append(Slice(entry, entry.taken, entry.count))
                entry.taken = entry.count
        return batch

    def _take_turns(self, now: float, is_over: Callable[[Entry], bool]) -> list[Slice]:
        """Takes a batch of images off a queue that holds more."""
        self._sort()
        batch: list[Slice] = []
        room = self._max_batch_size
        while room and (taken := self._sorted.take_turn(room, is_over)):
            for entry, images in taken:
                end, room = entry.taken, room - images
                if end == images:
                    entry.started = now
                if batch and batch[-1].entry is entry:
                    batch[-1].end = end
                else:
                    batch.append(Slice(entry, end - images, end))
        self.waiting = self._sorted.live.waiting + self.batch.waiting
        return batch

    def _sort(self) -> None:
        """Sorts the live entries into turns."""
        for entry in self._unsorted:
            self._sorted.live.add(entry)
        self._unsorted.clear()
