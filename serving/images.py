"""Image files, as people have them, to the arrays that the model reads."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serving.contract import IMAGE_BYTES, IMAGE_SHAPE

MAX_FILE_BYTES = 1 << 20


class ImageError(Exception):
    """The file is no image that can be sent; the message says why."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads a 28x28 image from a PNG, a JPEG, or a file of 784 raw bytes, dark on light or light on dark.

    Returns:
        (28, 28) uint8, 0 paper, 255 ink. The border tells which is which: digits do not touch it.

    Raises:
        ImageError: the file can't be read, is none of these, or has another size.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ImageError(f"more than {MAX_FILE_BYTES:,} bytes, which no 28x28 image needs")
        try:
            pixels = _decode(content)
        except UnidentifiedImageError:
            if len(content) != IMAGE_BYTES:
                raise ImageError(
                    f"neither a PNG, nor a JPEG, nor {IMAGE_BYTES} raw bytes, but {len(content)} bytes of something else"
                ) from None
            pixels = np.frombuffer(content, np.uint8).reshape(IMAGE_SHAPE)
    except Image.DecompressionBombError:
        raise ImageError("the image is far larger than 28x28") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for broken files
        raise ImageError(getattr(error, "strerror", None) or str(error)) from error
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 255 - pixels if np.median(border) > 127 else pixels


def _decode(content: bytes) -> NDArray[np.uint8]:
    """Grey levels of a 28x28 PNG or JPEG, whatever its colours; what is transparent is paper, dark under light ink."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if image.size != IMAGE_SHAPE:  # known before anything is decoded
            raise ImageError(f"the image is {image.width}x{image.height} pixels, expected 28x28")
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
            return (np.asarray(image) >> 8).astype(np.uint8)
        if image.has_transparency_data:
            grey, ink = np.moveaxis(np.asarray(image.convert("LA"), np.float64), 2, 0)
            paper = 0 if np.average(grey, weights=ink + 1e-9) > 127 else 255
            seen: NDArray[np.uint8] = np.round(paper + (grey - paper) * ink / 255).astype(np.uint8)
            return seen
        return np.asarray(image.convert("L"))
