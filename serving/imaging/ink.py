"""Ink detection: finds the ink of one digit in a grey photo."""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.imaging.paper import even_out, quantile
from serving.imaging.pieces import Box, choose, find_pieces
from serving.imaging.printing import clear_printing
from serving.imaging.whole import is_whole

LEAST_SIDE = 4  # pixels; no digit is seen on a smaller photo
_SUSPICIOUS = (
    0.7  # of the crop's height or width; no printing is looked for where the ink is smaller, and far from the edges
)
_FULL = 0.9  # quantile of the depth of the digit's pixels that counts as full ink

Pixels = NDArray[np.uint8]


class Ink(NamedTuple):
    """The ink of a photo.

    Attributes:
        cover: (h, w) float64, 0 paper to 1 ink, of the part of the photo that holds the digit; (1, 1) 0 if nothing stands
            out from the paper.
        whole: False where the ink is not certainly one whole digit.
    """

    cover: NDArray[np.float64]
    whole: bool


_NOTHING = Ink(np.zeros((1, 1)), whole=False)


def find_ink(photo: Pixels) -> Ink:
    """Estimates the share of each pixel that the digit's ink covers.

    Light is evened out, printing is cleared, the pieces that belong to the digit are chosen, and their grey edges are kept.

    Args:
        photo: (height, width) uint8, 0 black to 255 white. A side of a hundred pixels shows every detail of a digit.
    """
    if min(photo.shape) < LEAST_SIDE:
        return _NOTHING
    depth, core, faint = even_out(photo)
    if _may_hold_printing(core):
        core = clear_printing(core, depth, faint)
    labels, pieces = find_pieces(core)
    if not pieces:
        return _NOTHING
    choice = choose(pieces, core.shape)
    reach = max(1, round(max(core.shape) / 28))
    box = choice.box
    part = np.s_[max(box.top - reach, 0) : box.bottom + reach, max(box.left - reach, 0) : box.right + reach]
    grey, digit = depth[part], cv2.compare(labels[part], choice.labels[0], cv2.CMP_EQ)
    for label in choice.labels[1:]:
        digit |= cv2.compare(labels[part], label, cv2.CMP_EQ)
    full = max(quantile(grey, _FULL, digit), 2)
    whole = choice.alone and is_whole(digit, grey, full, box, core.shape)
    paper = min(faint, full // 2)
    cover = cv2.convertScaleAbs(cv2.subtract(grey, paper), alpha=255 / (full - paper))  # ends at 255
    cover = cv2.bitwise_and(cover, cv2.dilate(digit, _diamond(reach)))
    return Ink(cover / 255, whole)


def _may_hold_printing(core: Pixels) -> bool:
    height, width = core.shape
    box = Box(*cv2.boundingRect(core))
    near_edge = box.left <= 2 or box.top <= 2 or box.right >= width - 2 or box.bottom >= height - 2
    return near_edge or box.width > _SUSPICIOUS * width or box.height > _SUSPICIOUS * height


@lru_cache(64)
def _diamond(radius: int) -> Pixels:
    """Returns a structuring element, all pixels up to `radius` steps away."""
    steps = np.abs(np.arange(-radius, radius + 1))
    return (steps + steps[:, None] <= radius).astype(np.uint8)
