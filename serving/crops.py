"""Crops, PNG or JPEG files of one digit each on paper and of any size, to the images that the models read."""

import asyncio
import contextlib
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, QueueFull, Stopping
from serving.framing import frame
from serving.ink import find_ink
from serving.metrics import Metrics

MAX_PIXELS = 1 << 21  # of a crop; how many there are is known before any of them is decoded
LONGEST = 80  # pixels that the longer side is scaled down to: a digit shows no more, and more takes longer

_AT_A_TIME = 4  # crops that are framed in one go: then it is others' turn, and the caller may have given up
_MAX_WAITING_BYTES = 1 << 27

_ORIENTATION = 0x0112  # of Exif
_UPRIGHT = {  # by orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CropError(Exception):
    """The file is no crop that can be read; the message says why."""


def decode(content: bytes, longest: int | None = None) -> NDArray[np.uint8]:
    """Grey levels of a PNG or JPEG, upright, whatever its colours; what is transparent is paper, dark under light ink.

    Args:
        content: the file.
        longest: the longer side of what is wanted, pixels; a larger picture is scaled down to it.

    Returns:
        (height, width) uint8.

    Raises:
        CropError: it is neither, broken, has more pixels than MAX_PIXELS, or holds several pictures.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CropError(
                    f"the image is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels: cut the digit out, or "
                    "scale it down"
                )
            if getattr(image, "n_frames", 1) > 1:
                raise CropError("the file holds several images")
            return _grey(image, longest)
    except UnidentifiedImageError:
        raise CropError(f"neither a PNG nor a JPEG, but {len(content)} bytes of something else") from None
    except Image.DecompressionBombError:
        raise CropError(f"the image has more than {MAX_PIXELS:,} pixels") from None
    except CropError:
        raise
    except Exception as error:  # a broken file can make Pillow raise anything
        raise CropError(f"the file is broken: {error}") from error


def _grey(image: Image.Image, longest: int | None) -> NDArray[np.uint8]:
    if longest:
        image.draft("L", (longest, longest))  # a JPEG is decoded at a half, a quarter or an eighth of its size
    turned = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))  # ImageOps.exif_transpose trips over what else is in there
    upright = image.transpose(turned) if turned is not None else image
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    seen = upright.convert("LA" if upright.has_transparency_data else "L")
    factor = max(seen.size) / longest if longest else 1
    if factor > 1:
        width, height = (max(1, round(side / factor)) for side in seen.size)
        seen = seen.resize((width, height), Image.Resampling.BOX)
    if seen.mode == "L":
        return np.asarray(seen)
    grey, ink = np.moveaxis(np.asarray(seen, np.float64), 2, 0)
    paper = 0 if np.average(grey, weights=ink + 1e-9) > 127 else 255
    laid_on_paper: NDArray[np.uint8] = np.round(paper + (grey - paper) * ink / 255).astype(np.uint8)
    return laid_on_paper


def frame_crop(content: bytes) -> NDArray[np.uint8]:
    """The digit of a PNG or JPEG as MNIST frames it, (28, 28) uint8; all 0 where no ink is seen. Raises CropError."""
    return frame(find_ink(decode(content, LONGEST)))


class Framer:
    """Frames crops on a thread of its own, so that the event loop goes on; a few of each call in turn."""

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
    framed = []
    for crop in crops:
        began, trouble = time.perf_counter(), ""
        try:
            image = frame_crop(crop).tobytes()
        except CropError as error:
            image, trouble = bytes(IMAGE_BYTES), str(error)
        framed.append((image, trouble, time.perf_counter() - began))
    return framed
