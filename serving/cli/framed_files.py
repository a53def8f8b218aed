"""Image files that are framed already, and other files as the service frames them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.client.image_files import ImageError, light_ink, parse_raw, read_file
from serving.client.requests import SIDE
from serving.imaging.crop import Framed, frame_crop
from serving.imaging.decode import decode
from serving.imaging.headers import CropError, parse_header


def parse_framed(content: bytes) -> NDArray[np.uint8] | None:
    """Parses a file of one framed digit: a PNG or JPEG of 28x28 pixels, or 784 raw bytes.

    Returns:
        (28, 28) uint8, 0 paper, 255 ink. None for any other file, also for a broken one: the service judges it as a crop.
    """
    raw = parse_raw(content)
    if raw is not None:
        return light_ink(raw)
    try:
        header = parse_header(content)
        return light_ink(decode(content)) if (header.width, header.height) == (SIDE, SIDE) else None
    except CropError:
        return None


def read_framed(path: Path) -> Framed:
    """Reads one digit from a PNG, a JPEG, or a file of 784 raw bytes, and frames an image that is not 28x28 pixels.

    Returns:
        The image, and False where its framing doubts that it shows one whole digit. An image of 28x28 pixels is not framed,
        and never doubted.

    Raises:
        ImageError: the file can't be read, is not an image of the accepted kinds, or shows no ink.
    """
    content = read_file(path)
    image = parse_framed(content)
    if image is not None:
        return Framed(image, whole=True)
    try:
        framed = frame_crop(content)
    except CropError as error:
        raise ImageError(str(error)) from error
    if not framed.image.any():
        raise ImageError("no ink is seen on it")
    return framed
