"""The whole path of a crop: from a PNG or JPEG file of one digit on paper to the image that the models read."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.imaging.decode import decode
from serving.imaging.framing import frame
from serving.imaging.ink import find_ink

LONGEST = 80  # pixels of the longer side aimed at when scaling down; more pixels add no detail of a digit, and take longer


class Framed(NamedTuple):
    """A crop as the models read it.

    Attributes:
        image: (28, 28) uint8, 0 paper to 255 ink, framed as MNIST; all 0 if no ink is found.
        whole: False where the crop does not certainly show one whole digit.
    """

    image: NDArray[np.uint8]
    whole: bool


def frame_crop(content: bytes) -> Framed:
    """Converts a crop to the image that the models read.

    Args:
        content: content of a PNG or JPEG file.

    Raises:
        CropError: the file can't be decoded.
    """
    ink, whole = find_ink(decode(content, LONGEST))
    return Framed(frame(ink), whole)
