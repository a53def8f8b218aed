"""Doubts whether the ink of a crop is one whole digit: its size, place and shape, and how it meets the crop's edges."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.imaging.components import SHORTEST, BoundingBox

WIDEST = 2.0  # width over height; hardly one of MNIST's digits in a thousand is wider
THICKEST_STROKE = 0.55  # of the digit's longer side; one of MNIST's digits in a thousand has a thicker stroke
THINNEST_STROKE = 0.03
LEAST_MEASURED = 12  # pixels of a digit's longer side; in a smaller one, half a pixel decides about the stroke's width
MOST_HOLES = 2  # an 8 has two

# A straight bar is a 1, or a mark: a comma is shorter; a separator or a side of a box is taller, or stands aside.
BAR = 1.9  # length over breadth
SHORTEST_BAR, LONGEST_BAR = 0.27, 0.8  # of the crop's height
SIDE_BAR = 0.6  # of the crop's height, for a bar beside the crop's middle
BAR_AREA = 1.3  # of the area of a bar as long as the diagonal and as wide as the stroke; the ink of other shapes is more
BAR_FILL = 0.7  # of the turned rectangle around a bar
THIN_BAR, THIN_BAR_FILL = 4, 0.45  # pixels, and the share of a bar that is no broader: a slanted one leaves steps
WIDEST_BAR = 0.35  # of the crop's width; where an upright bar is wider, the crop is cut close
UPRIGHT = 1.3  # width of the upright rectangle over the breadth of the bar; a slanted bar is wider
BAR_PLACE = 0.25  # of the crop's width: a bar whose middle is nearer to an edge stands aside

THINNEST_BAR = 12.0  # length over breadth of a printed line; none of MNIST's 1s in 4,000 digits is thinner than 10
SOLID = 0.85  # share of its hull that a hole punched at the crop's edge fills; of MNIST's digits, only 1s are as solid
BOX_HOLE, BOX_SQUARE = 0.5, 0.82  # shares: a box's hole of its outline, and that of the rectangle around; a 0 is rounder
LEAST_HOLE = 0.01  # of the rectangle around the digit; smaller holes are gaps in the ink
SIDE_BY_SIDE = 0.6  # of the smaller hole's height that both share; in an 8 they lie one above the other
CLOSE = 0.85  # of the crop's height and width; a digit in a crop cut close has more
NARROW = 0.5  # width over height; a crop cut close around a 1 is narrower
LONGEST_CUT = 0.5  # of a solid digit's width or height; a part of a disc, or a strip, touches the crop's edge for longer
LONGEST_TOUCH = 0.4  # of the crop's edge; a digit cut off touches it for longer
FULL_INK, MOST_LIGHT = 0.8, 0.4  # of full ink; and of the pixels within the outline of a digit that is cut close
LEAST_BOX_HOLE = 0.28  # of the rectangle around a box, even a turned one
THICKEST_ANGLE = 0.09  # of the longer side; two sides of a box are thinner lines than the strokes of a 7

# A plus, or two sides of a box: a level and an upright bar, and hardly anything else.
PLUS = 0.6, 1.67  # width over height, from and to
ANGLE = 0.35, 2.9  # width over height, of two sides of a box, of which one may be cut off
BAR_ROW = 0.85  # of the width or height that the ink of a bar fills
THICKEST_BAR = 0.35  # of the height or width
OFF_CENTRE = 0.15  # of the height or width, at most, for the bars of a plus
BAR_REST = 0.08  # of the ink, outside of the bars and of the two pixels next to them
BAR_EDGE = 2  # pixels

SHARP = 0.45  # change of depth over two pixels across the outline, as a share of full ink; MNIST's enlarged digits have 0.7
SHARPEST, FULLEST = 0.65, 0.75  # where the ink is less full than that on average, it must be as sharp

DARK = 0.3  # of the step from the ink to the paper nearby; what is not lighter is as dark as the ink
MOST_DARK = 0.15  # of the surroundings of a digit

_NEAR = np.ones((7, 7), np.uint8)
_NEXT = np.ones((3, 3), np.uint8)

Mask = NDArray[np.uint8]


def is_whole(digit: Mask, depth: Mask, full: int, box: BoundingBox, crop: tuple[int, ...]) -> bool:
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
    digit, depth = digit[y : y + height, x : x + width], depth[y : y + height, x : x + width]
    framed = cv2.copyMakeBorder(digit, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    stroke = 2 * cv2.minMaxLoc(cv2.distanceTransform(framed, cv2.DIST_L2, 3))[1]
    if longer > LEAST_MEASURED and not THINNEST_STROKE * longer < stroke < THICKEST_STROKE * longer:
        return False
    if not _meets_edges_as_a_digit(digit, depth, full, box, crop):
        return False
    area = cv2.countNonZero(framed)
    if area < BAR_AREA * stroke * math.hypot(width, height) and _is_mark(framed, box, crop):
        return False
    thin = area < THICKEST_ANGLE * max(width, height) * (width + height) and not is_cut_close(box, crop)
    return not _are_two_bars(digit, area, printed=thin) and _has_holes_of_a_digit(framed)


def is_cut_close(box: BoundingBox, crop: tuple[int, ...]) -> bool:
    """Tells whether a crop, (height, width), shows hardly more than the digit."""
    return crop[1] < NARROW * crop[0] or (box.width >= CLOSE * crop[1] and box.height >= CLOSE * crop[0])


def is_surrounded_by_paper(digit: Mask, photo: Mask) -> bool:
    """Tells a digit from the rim of a dark area that is too wide for ink: behind the rim, the photo is as dark as the rim.

    Args:
        digit: (h, w) uint8, 255 the digit's pixels, 0 others.
        photo: (h, w) uint8, 0 ink to 255 paper, of the same part of the crop.
    """
    ink = cv2.erode(cv2.bitwise_or(photo, cv2.bitwise_not(digit)), _NEAR)  # of the darkest pixel of the digit nearby
    paper = cv2.dilate(photo, _NEAR)
    around = cv2.subtract(cv2.dilate(digit, _NEAR), cv2.dilate(digit, _NEXT))
    dark = cv2.compare(cv2.subtract(photo, ink), cv2.convertScaleAbs(cv2.subtract(paper, ink), alpha=DARK), cv2.CMP_LE)
    return cv2.countNonZero(cv2.bitwise_and(dark, around)) < MOST_DARK * cv2.countNonZero(around)


def _has_sharp_edges(digit: Mask, depth: Mask, full: int) -> bool:
    """Tells ink from light and stains, whose depth changes slowly."""
    outline = cv2.subtract(digit, cv2.erode(digit, _NEXT))
    sharpness = cv2.mean(cv2.morphologyEx(depth, cv2.MORPH_GRADIENT, _NEXT), outline)[0] / full
    fullness = cv2.mean(depth, digit)[0] / full
    return sharpness > (SHARPEST if fullness < FULLEST else SHARP)


def _meets_edges_as_a_digit(digit: Mask, depth: Mask, full: int, box: BoundingBox, crop: tuple[int, ...]) -> bool:
    """Tells whether a digit is not cut off.

    A crop cut close touches a digit on opposite sides. A digit cut off, or a strip, touches one side or a corner at length.
    """
    edges = top, bottom, left, right = box.top <= 0, box.bottom >= crop[0], box.left <= 0, box.right >= crop[1]
    if not any(edges):
        return True
    if sum(edges) >= 2 and not is_cut_close(box, crop) and _is_solid(digit):
        return False
    if (top and bottom) or (left and right):
        return _is_of_one_ink(digit, depth, full)
    level = max(top and np.count_nonzero(digit[0]), bottom and np.count_nonzero(digit[-1]))
    upright = max(left and np.count_nonzero(digit[:, 0]), right and np.count_nonzero(digit[:, -1]))
    if max(level / box.width, upright / box.height) > LONGEST_CUT and _is_solid(digit):
        return False
    return bool(level < LONGEST_TOUCH * crop[1] and upright < LONGEST_TOUCH * crop[0])


def _is_of_one_ink(digit: Mask, depth: Mask, full: int) -> bool:
    """Tells a digit from a digit on a band of shadow: within its outline, ink is nearly as dark as full ink."""
    inner = cv2.erode(digit, _NEXT)
    light = cv2.compare(depth, FULL_INK * full, cv2.CMP_LT)
    return cv2.countNonZero(cv2.bitwise_and(inner, light)) <= MOST_LIGHT * cv2.countNonZero(inner)


def _is_solid(digit: Mask) -> bool:
    """Tells whether ink fills its convex hull: a part of a disc does, and a straight bar."""
    return cv2.countNonZero(digit) > SOLID * cv2.contourArea(cv2.convexHull(cv2.findNonZero(digit)))


def _is_mark(framed: Mask, box: BoundingBox, crop: tuple[int, ...]) -> bool:
    """Tells whether a straight bar has a size or a place in the crop that no 1 has."""
    height, width = crop
    if box.width > WIDEST_BAR * width:
        return False
    (x, _), (one, other), _ = cv2.minAreaRect(cv2.findNonZero(framed))
    length, breadth = max(one, other) + 1, min(one, other) + 1
    fill = BAR_FILL if breadth > THIN_BAR else THIN_BAR_FILL
    if length < BAR * breadth or np.count_nonzero(framed) < fill * length * breadth:
        return False
    upright = box.width < UPRIGHT * breadth + 1
    aside = not BAR_PLACE * width < box.left + x < (1 - BAR_PLACE) * width
    long = (length > LONGEST_BAR * height and (upright or aside)) or length > THINNEST_BAR * breadth
    return length < SHORTEST_BAR * height or long or (aside and length > SIDE_BAR * height)


def _has_holes_of_a_digit(framed: Mask) -> bool:
    """Tells whether there are at most two holes, not side by side, and the ink is no box, upright, turned or rounded."""
    contours, hierarchy = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) == 1:
        return True
    least = LEAST_HOLE * framed.size
    holes = [contour for contour, row in zip(contours, hierarchy[0].tolist(), strict=True) if row[3] >= 0]
    areas = [cv2.contourArea(hole) for hole in holes]
    if max(areas, default=0) > LEAST_BOX_HOLE * framed.size and _is_box(max(contours, key=cv2.contourArea), max(areas)):
        return False
    boxes = [cv2.boundingRect(hole) for hole, area in zip(holes, areas, strict=True) if area > least]
    if len(boxes) == 2:
        (x, y, w, h), (other, below, wide, high) = boxes
        beside = max(x, other) >= min(x + w, other + wide)
        return not beside or min(y + h, below + high) - max(y, below) < SIDE_BY_SIDE * min(h, high)
    return len(boxes) <= MOST_HOLES


def _is_box(outline: NDArray[np.int32], hole: float) -> bool:
    """Tells whether an outline, with a hole of an area within, is that of a thin box."""
    area = cv2.contourArea(outline)
    _, (one, other), _ = cv2.minAreaRect(outline)
    return bool(hole > BOX_HOLE * area and area > BOX_SQUARE * one * other)


def _are_two_bars(digit: Mask, area: int, *, printed: bool) -> bool:
    """Tells whether a level and an upright bar are nearly all of the ink: a plus, or two sides of a printed box."""
    height, width = digit.shape
    square = PLUS[0] < width / height < PLUS[1]
    if not (square or (printed and ANGLE[0] < width / height < ANGLE[1])):
        return False
    level = np.flatnonzero(cv2.reduce(digit, 1, cv2.REDUCE_AVG)[:, 0] > BAR_ROW * 255)
    if not 0 < level.size < THICKEST_BAR * height:
        return False
    upright = np.flatnonzero(cv2.reduce(digit, 0, cv2.REDUCE_AVG)[0] > BAR_ROW * 255)
    if not 0 < upright.size < THICKEST_BAR * width:
        return False
    central = abs(level.mean() / height - 0.5) < OFF_CENTRE and abs(upright.mean() / width - 0.5) < OFF_CENTRE
    if not (printed or (square and central)):
        return False
    rest = digit.copy()
    rest[max(level[0] - BAR_EDGE, 0) : level[-1] + 1 + BAR_EDGE] = 0
    rest[:, max(upright[0] - BAR_EDGE, 0) : upright[-1] + 1 + BAR_EDGE] = 0
    return cv2.countNonZero(rest) < BAR_REST * area
