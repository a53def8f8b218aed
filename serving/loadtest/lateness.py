"""Finds the windows of a measurement in which the sender itself was late, and whose calls say nothing of the service."""

import math

WINDOW_SECONDS = 0.1
BEAT_SECONDS = 0.01  # the event loop is asked this often if it still runs on time


class Windows:
    """The windows of one process's measurement, each of WINDOW_SECONDS, in their order."""

    def __init__(self, start: float, seconds: float):
        """Divides the time from `start`, on the clock of time.monotonic."""
        self._start = start
        self._count = math.ceil(seconds / WINDOW_SECONDS)
        self._late: set[int] = set()
        self._judged = 0

    def mark_late(self, since: float, until: float) -> None:
        """Records that the sender was late from `since` to `until`: all windows that this time touches are late."""
        self._late.update(range(max(self._index(since), 0), min(self._index(until) + 1, self._count)))

    def judge(self, moment: float) -> tuple[int, int]:
        """Closes the windows that ended before `moment`. Returns how many these are, and how many of them are late."""
        closed = range(self._judged, max(self._judged, min(self._index(moment), self._count)))
        self._judged = closed.stop
        return len(closed), len(self._late.intersection(closed))

    def is_open(self, due: float) -> bool:
        """Returns True if the window of a call may still become late."""
        return self._judged <= self._index(due) < self._count

    def is_late(self, due: float) -> bool:
        """Returns True if the window in which a call was due is late."""
        return self._index(due) in self._late

    def _index(self, moment: float) -> int:
        return self._count if moment == math.inf else math.floor((moment - self._start) / WINDOW_SECONDS)
