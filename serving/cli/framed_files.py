"""Image files on disk, framed here as the server frames crops."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.client.image_files import ImageError, light_ink, parse_raw, read_file
from serving.client.requests import SIDE
from serving.imaging.decode import LONGEST, CropError, decode, frame_grey


def read_framed(path: Path) -> NDArray[np.uint8]:
    """Reads one digit from a PNG, a JPEG, or a file of 784 raw bytes, and frames an image that is not 28x28 pixels.

    Returns:
        (28, 28) uint8, 0 paper, 255 ink.

    Raises:
        ImageError: the file can't be read, is not an image of the accepted kinds, or shows no ink.
    """
    content = read_file(path)
    pixels = parse_raw(content)
    if pixels is None:
        try:
            pixels = decode(content, LONGEST)
        except CropError as error:
            raise ImageError(str(error)) from error
    if pixels.shape == (SIDE, SIDE):
        return light_ink(pixels)
    framed = frame_grey(pixels).image
    if not framed.any():
        raise ImageError("no ink is seen on it")
    return framed
