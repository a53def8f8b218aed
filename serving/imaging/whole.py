"""Doubts whether the ink of a crop is one whole digit: its size, place and shape, and how it meets the crop's edges."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.imaging.pieces import SHORTEST, Box

WIDEST = 2.0  # width over height; hardly one of MNIST's digits in a thousand is wider
THICKEST_STROKE = 0.55  # of the digit's longer side; one of MNIST's digits in a thousand has a thicker stroke
THINNEST_STROKE = 0.03
MOST_HOLES = 2  # an 8 has two

# A straight bar is a 1, or a mark: a comma is shorter; a separator or a side of a box is taller, or stands aside.
BAR = 1.9  # length over breadth
SHORTEST_BAR, LONGEST_BAR = 0.27, 0.8  # of the crop's height
SIDE_BAR = 0.6  # of the crop's height, for a bar beside the crop's middle
BAR_PLACE = 0.25  # of the crop's width: a bar whose middle is nearer to an edge stands aside

SHARP = 0.45  # change of depth over two pixels across the outline, as a share of full ink; MNIST's enlarged digits have 0.7
SHARPEST, FULLEST = 0.65, 0.75  # where the ink is less full than that on average, it must be as sharp

_NEXT = np.ones((3, 3), np.uint8)

Mask = NDArray[np.uint8]


def is_whole(digit: Mask, depth: Mask, full: int, box: Box, crop: tuple[int, ...]) -> bool:
    """Tells whether ink may be one whole digit.

    Args:
        digit: (h, w) uint8, 255 the digit's pixels, 0 others, of a part of the crop with all of the digit.
        depth: (h, w) uint8, 0 paper to 255 black, of the same part.
        full: depth of full ink.
        box: the rectangle around the digit, in the crop.
        crop: height and width of the crop.
    """
    longer = max(box.width, box.height)
    if box.height < SHORTEST * crop[0] or box.width > WIDEST * box.height or not _has_sharp_edges(digit, depth, full):
        return False
    x, y, width, height = cv2.boundingRect(digit)
    digit = digit[y : y + height, x : x + width]
    framed = cv2.copyMakeBorder(digit, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    stroke = 2 * cv2.minMaxLoc(cv2.distanceTransform(framed, cv2.DIST_L2, 3))[1]
    if longer > 12 and not THINNEST_STROKE * longer < stroke < THICKEST_STROKE * longer:
        return False
    if not _meets_edges_as_a_digit(digit, box, crop):
        return False
    one_stroke = np.count_nonzero(framed) < 1.3 * stroke * math.hypot(width, height)
    if one_stroke and _is_mark(framed, box, crop):
        return False
    return not _is_plus(digit) and _has_holes_of_a_digit(framed)


def _has_sharp_edges(digit: Mask, depth: Mask, full: int) -> bool:
    """Tells ink from light and stains, whose depth changes slowly."""
    outline = cv2.subtract(digit, cv2.erode(digit, _NEXT))
    sharpness = cv2.mean(cv2.morphologyEx(depth, cv2.MORPH_GRADIENT, _NEXT), outline)[0] / full
    fullness = cv2.mean(depth, digit)[0] / full
    return sharpness > (SHARPEST if fullness < FULLEST else SHARP)


def _meets_edges_as_a_digit(digit: Mask, box: Box, crop: tuple[int, ...]) -> bool:
    """Tells whether a digit is not cut off.

    A crop cut close touches a digit on opposite sides. A digit cut off, or a strip, touches one side or a corner at length.
    """
    top, bottom = box.top <= 0, box.bottom >= crop[0]
    left, right = box.left <= 0, box.right >= crop[1]
    if (top and bottom) or (left and right):
        return True
    level = max(top and np.count_nonzero(digit[0]), bottom and np.count_nonzero(digit[-1]))
    upright = max(left and np.count_nonzero(digit[:, 0]), right and np.count_nonzero(digit[:, -1]))
    return bool(level < 0.4 * crop[1] and upright < 0.4 * crop[0])


def _is_mark(framed: Mask, box: Box, crop: tuple[int, ...]) -> bool:
    """Tells whether a straight bar has a size or a place in the crop that no 1 has."""
    height, width = crop
    if box.width > 0.35 * width:
        return False  # the crop is cut close
    (x, _), (one, other), _ = cv2.minAreaRect(cv2.findNonZero(framed))
    length, breadth = max(one, other) + 1, min(one, other) + 1
    if length < BAR * breadth or np.count_nonzero(framed) < (0.7 if breadth > 4 else 0.45) * length * breadth:
        return False
    upright = box.width < 1.3 * breadth + 1
    aside = not BAR_PLACE * width < box.left + x < (1 - BAR_PLACE) * width
    long = length > LONGEST_BAR * height and (upright or aside)
    return length < SHORTEST_BAR * height or long or (aside and length > SIDE_BAR * height)


def _has_holes_of_a_digit(framed: Mask) -> bool:
    """Tells whether there are at most two holes, and these are not side by side."""
    contours, hierarchy = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) == 1:
        return True
    least = 0.01 * framed.size
    holes = [contour for contour, row in zip(contours, hierarchy[0].tolist(), strict=True) if row[3] >= 0]
    boxes = [cv2.boundingRect(hole) for hole in holes if cv2.contourArea(hole) > least]
    if len(boxes) == 2:
        (x, y, w, h), (other, below, wide, high) = boxes
        beside = max(x, other) >= min(x + w, other + wide)
        return not beside or min(y + h, below + high) - max(y, below) < 0.6 * min(h, high)
    return len(boxes) <= MOST_HOLES


def _is_plus(digit: Mask) -> bool:
    """Tells whether one level and one upright bar, crossing in their middles, are nearly all of the ink."""
    height, width = digit.shape
    if not 0.6 < width / height < 1.67:
        return False
    level = np.flatnonzero(cv2.reduce(digit, 1, cv2.REDUCE_AVG)[:, 0] > 0.85 * 255)
    if not 0 < level.size < 0.35 * height:
        return False
    upright = np.flatnonzero(cv2.reduce(digit, 0, cv2.REDUCE_AVG)[0] > 0.85 * 255)
    if not 0 < upright.size < 0.35 * width:
        return False
    central = abs(level.mean() / height - 0.5) < 0.15 and abs(upright.mean() / width - 0.5) < 0.15
    rest = digit.copy()
    rest[max(level[0] - 2, 0) : level[-1] + 3] = 0
    rest[:, max(upright[0] - 2, 0) : upright[-1] + 3] = 0
    return bool(central and np.count_nonzero(rest) < 0.08 * np.count_nonzero(digit))
