"""Image files on disk, read into images and crops that `DigitClient` accepts. Needs Pillow."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .requests import SIDE

try:
    from PIL import Image, ImageOps, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("reading image files needs Pillow: pip install pillow", name=error.name) from error

MAX_FILE_BYTES = 1 << 24
MAX_PIXELS = 1 << 21  # the server's limit for a crop
_SIGNATURES = (b"\x89PNG", b"\xff\xd8")


class ImageError(Exception):
    """The file is not an image that can be sent. The message has the reason."""


def read_image(path: Path) -> NDArray[np.uint8] | bytes:
    """Reads one digit from a PNG, a JPEG, or a file of 784 raw bytes, dark on light or light on dark.

    Returns:
        For an image of 28x28 pixels: (28, 28) uint8, 0 paper, 255 ink. The median of its border decides which grey is paper,
        because a framed digit does not touch the border. For any other size: the content of the file, a crop, which the
        server decodes and frames.

    Raises:
        ImageError: the file can't be read, or is neither a PNG nor a JPEG nor 784 raw bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    if len(content) > MAX_FILE_BYTES:
        raise ImageError(f"more than {MAX_FILE_BYTES:,} bytes: cut the digit out")
    if len(content) == SIDE * SIDE and not content.startswith(_SIGNATURES):
        return _light_ink(np.frombuffer(content, np.uint8).reshape(SIDE, SIDE))
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}, more than {MAX_PIXELS:,} pixels"
                raise ImageError(f"the image is {size}: cut the digit out, or scale it down")
            return _light_ink(_grey(image)) if image.size == (SIDE, SIDE) else content
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels: cut the digit out, or scale it down") from None
    except UnidentifiedImageError:
        raise ImageError(f"neither a PNG nor a JPEG, but {len(content)} bytes of something else") from None
    except Exception as error:  # Pillow raises many types for broken files
        raise ImageError(f"the file is broken: {error}") from error


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Returns (height, width) uint8, upright. Transparent pixels become paper: dark around light ink, light around dark."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # Pillow's own conversion clips 16-bit grey
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if not upright.has_transparency_data:
        return np.asarray(upright.convert("L"))
    grey, opacity = np.moveaxis(np.asarray(upright.convert("LA"), np.float64), 2, 0)
    paper = 0 if np.average(grey, weights=opacity + 1e-9) > 127 else 255
    flattened: NDArray[np.uint8] = np.round(paper + (grey - paper) * opacity / 255).astype(np.uint8)
    return flattened


def _light_ink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 255 - pixels if np.median(border) > 127 else pixels
