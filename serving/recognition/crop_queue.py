"""Crops, PNG or JPEG files of one digit each on paper and of any size, wait their turn to be framed."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, QueueFull, Stopping
from serving.telemetry.metrics import Metrics

_AT_A_TIME = 4  # crops that are framed in one go: then it is others' turn, and the caller may have given up
_MAX_WAITING_BYTES = 1 << 27


class CropQueue:
    """Frames crops on a thread of its own, a few crops of each call in turn."""

    def __init__(self, max_waiting: int, metrics: Metrics):
        """Takes calls as long as no more than so many crops wait, nor more than 128 MB of them."""
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._waiting = self._waiting_bytes = 0
        self._seconds_per_crop = 0.001  # a guess, until there is something to measure
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="framing")

    async def frame(self, crops: Sequence[bytes], deadline: float) -> tuple[bytes, dict[int, str]]:
        """Frames n crops.

        Args:
            crops: the files.
            deadline: on the clock of time.monotonic.

        Returns:
            The images, 784 bytes each, all paper where no ink is seen; and why crops can't be read, by their place.

        Raises:
            QueueFull: too many wait already, or so many that these would be late.
            DeadlineExceeded: it has passed.
            Stopping: it was closed.
        """
        size = sum(map(len, crops))
        self._admit(len(crops), size, deadline)
        self._count(len(crops), size)
        images: list[bytes] = []
        troubles: dict[int, str] = {}
        try:
            while len(images) < len(crops):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded("the deadline passed before all crops were framed")
                if self._closed:
                    raise Stopping("the server is stopping")
                part = crops[len(images) : len(images) + _AT_A_TIME]
                framed = await asyncio.get_running_loop().run_in_executor(self._thread, _frame_all, part)
                for image, trouble, seconds in framed:
                    if trouble:
                        troubles[len(images)] = trouble
                    images.append(image)
                    self._metrics.framing_seconds.observe(seconds)
                    self._seconds_per_crop += 0.05 * (seconds - self._seconds_per_crop)
        finally:
            self._count(-len(crops), -size)
        return b"".join(images), troubles

    async def close(self, grace_seconds: float) -> None:
        """Takes no more crops, and waits that long for those that it has; the others end as Stopping."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        self._closed = True
        self._thread.shutdown(wait=False)

    def _admit(self, count: int, size: int, deadline: float) -> None:
        if self._stopping:
            raise Stopping("the server is stopping")
        seconds = self._waiting * self._seconds_per_crop
        if self._waiting and (self._waiting + count > self._max_waiting or self._waiting_bytes + size > _MAX_WAITING_BYTES):
            raise QueueFull(f"{self._waiting} crops wait to be framed, and there is no room for {count} more", seconds)
        if self._waiting and time.monotonic() + seconds > deadline:
            raise QueueFull(f"{self._waiting} crops wait to be framed, and {count} more would be late", seconds)

    def _count(self, count: int, size: int) -> None:
        self._waiting += count
        self._waiting_bytes += size
        self._metrics.crops_waiting.set(self._waiting)
        if self._waiting:
            self._idle.clear()
        else:
            self._idle.set()


def _frame_all(crops: Sequence[bytes]) -> list[tuple[bytes, str, float]]:
    """The image of each crop, why it can't be read, "" if it can, and how many seconds that took."""
    from serving.imaging.decode import CropError, frame_crop  # a service that is sent no crops starts sooner and smaller

    framed = []
    for crop in crops:
        began, trouble = time.perf_counter(), ""
        try:
            image = frame_crop(crop).tobytes()
        except CropError as error:
            image, trouble = bytes(IMAGE_BYTES), str(error)
        framed.append((image, trouble, time.perf_counter() - began))
    return framed
