"""Bands of shadow with two hard edges, of a finger or a cable: narrower than the widest stroke, so they look like ink."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.imaging.components import SHORTEST, BoundingBox, label_type
from serving.imaging.paper import Depth, measure_depth

NARROWEST = 0.06  # of the crop's longer side; a narrower band is as wide as a stroke
THIRD = 0.25  # of the second longest run along the edges; a digit in a crop cut close has a third run
FILLED = 0.95  # of the middle of a band; the rest is noise
_TAPER = 1.5  # width of the wider end over that of the other; the sides of a band are nearly parallel
_MIDDLE = 0.8  # of the width of the band; the rest are its edges, which pixels round
_FITTED = 0.85  # of the width of the band: the width of a rectangle that fits into it
_LENGTH = 2.5  # of that rectangle over its width; no stroke is as straight and as thick for as long
_SHIFT = 4  # binary digits after the point of the coordinates that OpenCV draws

Mask = NDArray[np.uint8]


def clear_band(depth: Depth) -> Depth:
    """Takes a band of shadow across the crop for paper in the dark, where a digit within the crop is left without the band.

    The paper is the grey closing by a rectangle that fits into the band and is turned as the band is.
    """
    found = _find_band(depth.dark)
    if found is None:
        return depth
    paper = cv2.morphologyEx(depth.photo, cv2.MORPH_CLOSE, _turned_rectangle(*found))
    without = measure_depth(depth.photo, paper)
    return without if _holds_a_digit(without.core) else depth


def _find_band(core: Mask) -> tuple[float, float, float] | None:
    """Finds a band between the two longest runs of ink along the crop's edges.

    Returns the direction of the band, x and y of a unit vector, and its width in pixels; None if there is no band.
    """
    height, width = core.shape
    sides = core[0], core[-1], core[:, 0], core[:, -1]
    if sum(map(np.count_nonzero, sides)) < 2 * NARROWEST * max(height, width):
        return None
    edge = np.concatenate([core[0], core[:, -1], core[-1, ::-1], core[::-1, 0]]) > 0  # clockwise from the top left corner
    changes = np.flatnonzero(edge != np.concatenate([edge[-1:], edge[:-1]]))
    if len(changes) < 4:  # the ends of two runs
        return None
    if not edge[changes[0]]:  # the first is the end of a run across the corner
        changes = np.concatenate([changes[1:], changes[:1]])
    starts, ends = changes[::2], (changes[1::2] - 1) % len(edge)
    x, y = _walk_edge(height, width)
    lengths = (ends - starts) % len(edge) + 1
    *_, third, first, second = [-1, *np.argsort(lengths)]
    if lengths[first] < NARROWEST * max(height, width) or (third >= 0 and lengths[third] > THIRD * lengths[first]):
        return None
    middles = [(starts[run] + lengths[run] // 2) % len(edge) for run in (first, second)]
    (x0, x1), (y0, y1) = x[middles].tolist(), y[middles].tolist()
    across, down = x1 - x0, y1 - y0
    long = max(1.0, float(np.hypot(across, down)))
    across, down = across / long, down / long
    wide, other = sorted(
        abs(down * (x[ends[run]] - x[starts[run]]) - across * (y[ends[run]] - y[starts[run]])) + 1.0
        for run in (first, second)
    )
    if not NARROWEST * max(height, width) <= wide < long or other > _TAPER * wide:
        return None
    aside = _MIDDLE / 2 * wide * np.array([-down, across])
    ends = np.array([[x0, y0], [x1, y1]])
    corners = _fixed_point(np.concatenate([ends + aside, ends[::-1] - aside]))
    band = cv2.fillConvexPoly(np.zeros_like(core), corners, 255, cv2.LINE_8, _SHIFT)
    if cv2.countNonZero(cv2.bitwise_and(band, core)) < FILLED * cv2.countNonZero(band):
        return None
    return across, down, float(wide)


@lru_cache(64)
def _walk_edge(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns x and y of the pixels along the edges of a crop, clockwise from the top left corner."""
    rows, columns = np.arange(height), np.arange(width)
    x = np.concatenate([columns, np.full(height, width - 1), columns[::-1], np.zeros(height, np.intp)])
    y = np.concatenate([np.zeros(width, np.intp), rows, np.full(width, height - 1), rows[::-1]])
    return x, y


def _fixed_point(corners: NDArray[np.float64]) -> NDArray[np.int32]:
    """Returns coordinates with binary digits after the point, as OpenCV draws them."""
    return np.round(corners * (1 << _SHIFT)).astype(np.int32)


def _turned_rectangle(across: float, down: float, wide: float) -> Mask:
    half = (_FITTED * wide - 1) / 2
    along = np.array([across, down]) * _LENGTH * half
    aside = np.array([-down, across]) * half
    reach = int(np.abs(along).max() + np.abs(aside).max()) + 1
    corners = np.array([along + aside, along - aside, -along - aside, -along + aside]) + reach
    rectangle = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    cv2.fillConvexPoly(rectangle, _fixed_point(corners), 1, cv2.LINE_8, _SHIFT)
    return rectangle


def _holds_a_digit(core: Mask) -> bool:
    """Tells whether the largest component of the ink is as tall as a digit, and reaches no edge of the crop."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(core, ltype=label_type(core))
    if len(stats) < 2:
        return False
    box = BoundingBox(*stats[1:][stats[1:, cv2.CC_STAT_AREA].argmax(), :4].tolist())
    return box.height >= SHORTEST * len(core) and not box.touches(core.shape)
