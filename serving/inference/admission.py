"""Admission to the queue: refuses a request that has no room in it, or no time."""

from serving.errors import queue_full
from serving.inference.entry import Entry
from serving.inference.entry_queue import EntryQueue
from serving.inference.pace import Pace


class Admission:
    """Bounds a queue of images. Running late work delays all other work, so a late request is refused at once."""

    def __init__(self, queue: EntryQueue, pace: Pace, max_queue_size: int):
        """Takes the queue, its pace, and the images of each priority that may wait, at most."""
        self._queue = queue
        self._pace = pace
        self._max_queue_size = max_queue_size

    def refuse_excess(self, entry: Entry) -> None:
        """Refuses an entry for which the queue has no room, or no time.

        Room is made at the cost of clients that have more in the queue. The estimate of the wait by turns takes longer, so
        it is made only where all that waits would make the entry late.

        Raises:
            QueueFull: with the time after which to retry.
        """
        count, seconds_left, in_turns = entry.count, entry.deadline - entry.arrived, entry.count > self._queue.turn
        if self._pace.seconds_late(self._queue.waiting, count, seconds_left, in_turns=in_turns) > 0:
            late = self._pace.seconds_late(self._queue.ahead(entry), count, seconds_left, in_turns=in_turns)
            if late > 0:
                raise queue_full(
                    f"{self._queue.waiting} images wait, and {count} more would hardly be answered within their deadline",
                    retry_after_seconds=late,
                    batch=entry.batch,
                )
        if self._queue.waiting + entry.count > self._max_queue_size:
            self._make_room(entry)

    def _make_room(self, entry: Entry) -> None:
        waiting = self._queue.waiting_with(entry)
        excess = waiting + entry.count - self._max_queue_size
        seconds = excess * self._pace.seconds_per_image
        if excess > 0 and (entry.count > self._max_queue_size or not self._queue.make_room(entry, excess, seconds)):
            raise queue_full(
                f"the queue is full: {waiting} images wait, and {entry.count} more would pass its limit of "
                f"{self._max_queue_size}",
                retry_after_seconds=seconds,
                batch=entry.batch,
            )
