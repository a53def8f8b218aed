"""Estimates how long a request would wait in the queue, from the time that the last runs took."""

# Safety factor on the estimated queue wait; run times vary about twofold. A request that is taken in several turns gets
# twice this factor, since other requests have their turns in between.
_SAFETY_FACTOR = 2

_DECAY = 0.95  # weight that a run keeps with each later run


class Pace:
    """Running averages over the last runs: seconds per image off the queue, and seconds per image within a run.

    Example: two runners finish runs of 100 images, each in 20 ms and one every 10 ms. The queue then moves at 0.1 ms an
    image, and a run takes 0.2 ms an image. With 500 images ahead, a request of one image is expected after
    (2 * 500 + 1) * 0.1 ms = 100.1 ms, with the safety factor of 2. A caller who gave it 80 ms is refused, with a hint to
    retry 20.1 ms later; a caller who gave it 200 ms is admitted.

    Attributes:
        seconds_per_image: time for one image to leave the queue, all runners together; 0 before the first run.
        run_seconds_per_image: time for one image within a run; 0 while unknown.
    """

    def __init__(self) -> None:
        self.seconds_per_image = 0.0
        self.run_seconds_per_image = 0.0
        self._recent_seconds = self._recent_images = 0.0  # of the last runs, older runs with less weight
        self._last_end = 0.0
        self._was_behind = False  # True if images waited when the last run ended

    def seconds_late(self, ahead: int, count: int, seconds_left: float, *, in_turns: bool) -> float:
        """Estimates how late the answer to a new request would be.

        Args:
            ahead: images that are read before those of the request.
            count: images of the request.
            seconds_left: time until the deadline of the request; infinite without a deadline.
            in_turns: True if the request is too large for one turn, so that requests to come have turns before its last.

        Returns:
            Seconds past the deadline; 0 or less when the answer is expected in time.
        """
        factor = 2 * _SAFETY_FACTOR if in_turns else _SAFETY_FACTOR
        return (factor * ahead + count) * self.seconds_per_image - seconds_left

    def learn(self, start: float, end: float, images: int, *, run_seconds: float, runners: int, waiting: int) -> None:
        """Learns from a run that has ended.

        Args:
            start: of the run, on the clock of time.monotonic.
            end: of the run, on the same clock.
            images: images in the run.
            run_seconds: time inside the model, without the wait for a thread.
            runners: runs that could go on at the same time.
            waiting: images in the queue at the end.
        """
        seconds = end - self._last_end if self._was_behind else (end - start) / runners
        # Weighted by images: one slow run of a single image must not count as much as a run of a hundred.
        self._recent_seconds = _DECAY * self._recent_seconds + seconds
        self._recent_images = _DECAY * self._recent_images + images
        self.seconds_per_image = self._recent_seconds / self._recent_images
        known = self.run_seconds_per_image
        self.run_seconds_per_image += (run_seconds / images - known) * (1 - _DECAY if known else 1)
        self._last_end, self._was_behind = end, waiting > 0

    def forget_run_time(self) -> None:
        """Forgets how long a run takes: a run that fails may take any time."""
        self.run_seconds_per_image = 0.0

    def break_backlog(self) -> None:
        """Starts a new backlog: the next run is not measured from the end of the last one."""
        self._was_behind = False
