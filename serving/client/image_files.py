"""Image files on disk, read into images and crops that `DigitClient` accepts. Needs Pillow."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .requests import SIDE

try:
    from PIL import Image, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("reading image files needs Pillow: pip install pillow", name=error.name) from error

MAX_FILE_BYTES = 1 << 24
MAX_PIXELS = 1 << 21  # the server's limit for a crop
_SIGNATURES = (b"\x89PNG", b"\xff\xd8")

_ORIENTATION = 0x0112  # Exif tag
_UPRIGHT = {  # transposition that undoes each Exif orientation; ImageOps.exif_transpose fails on invalid other tags
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """The file is not an image that can be sent. The message has the reason."""


def read_image(path: Path) -> NDArray[np.uint8] | bytes:
    """Reads one digit from a PNG, a JPEG, or a file of 784 raw bytes, dark on light or light on dark.

    Returns:
        For an image of 28x28 pixels: (28, 28) uint8, 0 paper, 255 ink. For any other size: the content of the file, a crop,
        which the server decodes and frames.

    Raises:
        ImageError: the file can't be read, or is neither a PNG nor a JPEG nor 784 raw bytes. Or it holds 28x28 pixels that
            are transparent or have 16 bits.
    """
    content = read_file(path)
    raw = parse_raw(content)
    if raw is not None:
        return light_ink(raw)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}, more than {MAX_PIXELS:,} pixels"
                raise ImageError(f"the image is {size}: cut the digit out, or scale it down")
            return light_ink(_grey(image)) if image.size == (SIDE, SIDE) else content
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels: cut the digit out, or scale it down") from None
    except UnidentifiedImageError:
        raise ImageError(f"neither a PNG nor a JPEG, but {len(content)} bytes of something else") from None
    except Exception as error:  # Pillow raises many types for broken files
        raise ImageError(f"the file is broken: {error}") from error


def read_file(path: Path) -> bytes:
    """Reads a file of at most MAX_FILE_BYTES. Raises ImageError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"more than {MAX_FILE_BYTES:,} bytes: cut the digit out")
    return content


def parse_raw(content: bytes) -> NDArray[np.uint8] | None:
    """Returns (28, 28) uint8, the pixels of a file of 784 raw bytes; None for the content of any other file."""
    if len(content) != SIDE * SIDE or content.startswith(_SIGNATURES):
        return None
    return np.frombuffer(content, np.uint8).reshape(SIDE, SIDE)


def light_ink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a framed digit with light ink on dark paper.

    The median of its border decides which grey is paper, because a framed digit does not touch the border.
    """
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 255 - pixels if np.median(border) > 127 else pixels


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Returns (height, width) uint8, upright."""
    if image.mode.startswith("I") or image.has_transparency_data:
        raise ImageError("the pixels are transparent or have 16 bits: save the image without transparency, with 8 bits")
    turned = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return np.asarray((image if turned is None else image.transpose(turned)).convert("L"))
