"""Image files on disk, framed here as the server frames crops."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.client.image_files import ImageError, read_image
from serving.imaging.decode import CropError, frame_crop


def read_framed(path: Path) -> NDArray[np.uint8]:
    """Reads one digit as `read_image` does, and frames an image that is not 28x28 pixels.

    Returns:
        (28, 28) uint8, 0 paper, 255 ink.

    Raises:
        ImageError: the file can't be read, is not an image of the accepted kinds, or shows no ink.
    """
    image = read_image(path)
    if isinstance(image, np.ndarray):
        return image
    try:
        framed = frame_crop(image)
    except CropError as error:
        raise ImageError(str(error)) from error
    if not framed.any():
        raise ImageError("no ink is seen on it")
    return framed
