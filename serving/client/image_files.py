"""Image files, as people have them, to the arrays that the model reads."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES, IMAGE_SHAPE
from serving.imaging.decode import LONGEST, CropError, decode
from serving.imaging.framing import frame
from serving.imaging.ink import find_ink

MAX_FILE_BYTES = 1 << 24


class ImageError(Exception):
    """The file is no image that can be sent; the message says why."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads one digit from a PNG, a JPEG, or a file of 784 raw bytes, dark on light or light on dark.

    A picture of 28x28 pixels is taken as it is, its border telling which is paper: digits do not touch it. One of any other
    size is taken for a crop, and framed as the server frames those that it is sent.

    Returns:
        (28, 28) uint8, 0 paper, 255 ink.

    Raises:
        ImageError: the file can't be read, is none of these, or shows no ink.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ImageError(f"more than {MAX_FILE_BYTES:,} bytes: cut the digit out")
        if len(content) == IMAGE_BYTES and not content.startswith((b"\x89PNG", b"\xff\xd8")):
            pixels = np.frombuffer(content, np.uint8).reshape(IMAGE_SHAPE)
        else:
            pixels = decode(content, LONGEST)
        if pixels.shape != IMAGE_SHAPE:
            framed = frame(find_ink(pixels))
            if not framed.any():
                raise ImageError("no ink is seen on it")
            return framed
    except (CropError, OSError) as error:
        raise ImageError(getattr(error, "strerror", None) or str(error)) from error
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return 255 - pixels if np.median(border) > 127 else pixels
