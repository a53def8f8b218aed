"""The queue of crops: PNG or JPEG files of one digit each, framed like MNIST images before the network sees them."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, QueueFull, Stopping
from serving.imaging.headers import CropError
from serving.telemetry.metrics import Metrics

_TURN = 5  # crops of one call framed in a row, as in a field; then other calls have their turn, and the caller may have gone
_MAX_WAITING_BYTES = 1 << 27  # 128 MiB
_FIRST_GUESS_SECONDS = 0.001
_SMOOTHING = 0.05  # weight of the newest crop in the average


class FramedCrops(NamedTuple):
    """The n framed crops of one call.

    Attributes:
        pixels: 784 bytes a crop, 0 paper to 255 ink; blank where a crop shows no ink or can't be decoded.
        whole: n flags; False where the crop does not certainly show one whole digit.
        errors: the reasons that crops can't be decoded, by their index.
    """

    pixels: bytes
    whole: list[bool]
    errors: dict[int, str]


class CropQueue:
    """Frames crops on one thread, a few crops of each call in turn, so that the event loop stays free."""

    def __init__(self, max_waiting: int, metrics: Metrics):
        """Starts empty.

        Args:
            max_waiting: crops that may wait. They may also not exceed 128 MiB in total. One call is always accepted.
            metrics: counts crops and their framing time.
        """
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._waiting = self._waiting_bytes = 0
        self._seconds_per_crop = _FIRST_GUESS_SECONDS
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="framing")

    async def frame(self, crops: Sequence[bytes], deadline: float) -> FramedCrops:
        """Frames n crops.

        Args:
            crops: PNG or JPEG files.
            deadline: on the clock of time.monotonic.

        Raises:
            QueueFull: the queue has no room, or the crops would be framed too late.
            DeadlineExceeded: the deadline passed.
            Stopping: the queue was closed.
        """
        size = sum(map(len, crops))
        self._refuse_excess(len(crops), size, deadline)
        self._count(len(crops), size)
        images: list[bytes] = []
        whole: list[bool] = []
        errors: dict[int, str] = {}
        try:
            while len(images) < len(crops):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded("the deadline passed before all crops were framed")
                if self._closed:
                    raise Stopping("the server is stopping")
                part = crops[len(images) : len(images) + _TURN]
                framed = await asyncio.get_running_loop().run_in_executor(self._thread, _frame_all, part)
                for image, is_whole, error, seconds in framed:
                    if error:
                        errors[len(images)] = error
                    images.append(image)
                    whole.append(is_whole)
                    self._metrics.framing_seconds.observe(seconds)
                    self._seconds_per_crop += _SMOOTHING * (seconds - self._seconds_per_crop)
        finally:
            self._count(-len(crops), -size)
        return FramedCrops(b"".join(images), whole, errors)

    async def close(self, grace_seconds: float) -> None:
        """Refuses new crops and waits up to the grace for the queued ones; the rest end as Stopping."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        self._closed = True
        self._thread.shutdown(wait=False)

    def _refuse_excess(self, count: int, size: int, deadline: float) -> None:
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


def _frame_all(crops: Sequence[bytes]) -> list[tuple[bytes, bool, str, float]]:
    """Frames crops in the calling thread.

    Returns:
        For each crop: the image, whether it shows one whole digit, why it can't be decoded or "", and the seconds.
    """
    from serving.imaging.crop import frame_crop  # OpenCV: a service without crops starts sooner

    framed = []
    for crop in crops:
        began, error = time.perf_counter(), ""
        try:
            result = frame_crop(crop)
            image, whole = result.image.tobytes(), result.whole
        except CropError as refusal:
            image, whole, error = bytes(IMAGE_BYTES), False, str(refusal)
        framed.append((image, whole, error, time.perf_counter() - began))
    return framed
