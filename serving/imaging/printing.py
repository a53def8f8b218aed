"""Printing around a digit: ruling lines, sides of boxes, and dark strips along the crop's edges."""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.imaging.components import label_type
from serving.imaging.paper import quantile

DEEPEST_SIDE = 0.33  # of the crop; no side of a box lies further from the crop's edge
STEEPEST = 0.1  # rows a column; a line turned by more is not recognized
THICKEST_LINE = 0.12  # of the crop's height
PARTED = 1.35  # ink this much darker than the ruling lines is told from them by its depth alone
MOST_LAYERS = 3  # strips, sides of the next boxes, and sides of the box around the digit may lie within one another
SHORTEST_SIDE = 0.55  # of the crop
LONG = 0.75  # of the crop; a side of a box is at least as long, except in boxes with gaps

_NEXT = np.ones((3, 3), np.uint8)
_BARE = 0.3  # quantile of a line's thickness; along the rest of the line a stroke may touch it
_STRAIGHT = 1.5  # pixels that a straight line strays, by noise and by the rounding of its edge
_ACROSS = 0.95  # of the crop, at least; a line from edge to edge may lose its ends to the light

# A ruling line.
_AT_EDGE = 3  # pixels; a line from edge to edge has ink within as many columns of both edges
_SHORTEST_RUN = 9  # pixels; a third of a small crop's width is no longer than a stroke is wide
_LEAST_BARE = 0.4  # of the crop's width, without a stroke on the line
_MOSTLY = 0.7  # of a bare line; as much of a printed one is straight
_SPARE = 1  # rows on either side of a line that its soft edge covers
_PRINT, _PEN = 0.9, 0.8  # quantiles of the depth that stand for lines and for other ink; darker pixels are crossings
_FILLS = 0.03  # of the crop's longer side; a digit in a crop cut close comes as near to its edges

# A side of a box, or a strip.
THICKEST_SIDE = 0.25  # of the crop; a strip may be as thick
_SEEN = 0.5  # of the columns, at least, have ink near the edge where there is a side
_SOFT_EDGE = 0.7  # rows beyond a side that are cleared, too
_FLUSH = 0.9  # of the columns of a strip; it begins in their first or second row

Mask = NDArray[np.uint8]


class Line(NamedTuple):
    """A straight line across a crop, or across a view of it.

    Attributes:
        start: (width,) first row of the line.
        thickness: rows.
        share: of the columns that the line has been found in.
        flush: the line starts at the crop's edge in nearly all columns.
    """

    start: NDArray[np.float64]
    thickness: int
    share: float
    flush: bool


def clear_printing(core: Mask, depth: Mask, faint: int) -> Mask:
    """Clears printing from a mask of ink, and from the depth where a lighter print crosses the ink.

    Args:
        core: (height, width) uint8, 255 ink, 0 paper; all printing included.
        depth: (height, width) uint8, 0 paper to 255 black; changed in place.
        faint: the deepest that noise alone reaches.

    Returns:
        The mask without printing; all 0 if there is nothing else.
    """
    core, level, upright = _clear_rulings(core, depth, faint)
    for _ in range(MOST_LAYERS):
        core, sides = _clear_sides(core, level=level, upright=upright)
        if not sides:
            break
        boxed = any(not side.flush for side in sides.values())
        level, upright = level or boxed, upright or boxed
    return core


def _clear_rulings(core: Mask, depth: Mask, faint: int) -> tuple[Mask, bool, bool]:
    """Clears lines from edge to edge, level and upright ones, except where strokes cross them.

    Returns the mask, and whether level and upright lines were cleared.
    """
    if not cv2.countNonZero(core):
        return core, False, False
    _, traces = cv2.threshold(depth, max(faint, cv2.minMaxLoc(depth, core)[0] / 2), 255, cv2.THRESH_BINARY)
    level, upright = _find_rulings(traces), _find_rulings(traces.T)
    if not level and not upright:
        return core, False, False
    cleared, band = core.copy(), np.zeros(core.shape, bool)
    for line in level:
        _clear_ruling(core, cleared, band, line)
    for line in upright:
        _clear_ruling(core.T, cleared.T, band.T, line)
    fills = (len(level) == 1 and _fills(cleared, level[0])) or (len(upright) == 1 and _fills(cleared.T, upright[0]))
    if fills or (len(level) + len(upright) == 1 and not cv2.countNonZero(cleared)):
        return core, False, False
    print_level, pen_level = quantile(depth, _PRINT, cv2.subtract(core, cleared)), quantile(depth, _PEN, cleared)
    if pen_level > PARTED * print_level:
        cv2.subtract(depth, print_level, dst=depth)
        _, parted = cv2.threshold(depth, (pen_level - print_level) / 2, 255, cv2.THRESH_BINARY)
        return parted, bool(level), bool(upright)
    depth[band & (cleared == 0)] = 0
    return cleared, bool(level), bool(upright)


def _fills(rest: Mask, line: Line) -> bool:
    """Tells whether a level line and the rest of the ink reach from top to bottom, as a 7 does in a crop cut close."""
    height = len(rest)
    near = 1 + round(_FILLS * max(rest.shape))
    top, bottom = rest[:near].any(), rest[-near:].any()
    line_top, line_bottom = line.start.min() < near, line.start.max() + line.thickness > height - near
    return bool((top or bottom) and (top or line_top) and (bottom or line_bottom))


def _find_rulings(core: Mask) -> list[Line]:
    """Finds level lines from edge to edge."""
    height, width = core.shape
    ink = np.ascontiguousarray(core)
    if not (cv2.countNonZero(ink[:, :_AT_EDGE]) and cv2.countNonZero(ink[:, -_AT_EDGE:])):
        return []
    spread = cv2.dilate(ink, _NEXT)
    runs = cv2.morphologyEx(spread, cv2.MORPH_OPEN, np.ones((1, max(_SHORTEST_RUN, width // 3)), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(runs, ltype=label_type(runs))
    lines = []
    for label, (_, top, extent, rows, _) in enumerate(stats[1:].tolist(), 1):
        if extent < _ACROSS * width:
            continue
        line = (labels[top : top + rows] == label) & (ink[top : top + rows] > 0)
        sums = line.sum(axis=0)
        columns = sums.nonzero()[0]
        thickness = int(_rank(sums[columns], _BARE))
        thin = columns[sums[columns] <= thickness + 1]
        if thickness > THICKEST_LINE * height or len(thin) < _LEAST_BARE * width:
            continue
        middles = (np.arange(top, top + rows) @ line)[thin] / sums[thin]
        fitted = _fit(thin, middles, width)
        if fitted is not None and np.count_nonzero(np.abs(middles - fitted[thin]) < _STRAIGHT) > _MOSTLY * len(thin):
            lines.append(Line(fitted - (thickness - 1) / 2, thickness, 1.0, flush=False))
    return lines


def _clear_ruling(core: Mask, cleared: Mask, band: NDArray[np.bool_], line: Line) -> None:
    """Clears a line in `cleared`, but not where ink lies above or below it. Adds the line's place to `band`."""
    start, end = line.start - _SPARE, line.start + line.thickness + _SPARE
    top, bottom = max(int(start.min()) - 2, 0), int(end.max()) + 2  # of all rows that matter, a few of the crop
    ink = core[top:bottom] > 0
    rows = np.arange(top, top + len(ink))[:, None]
    beside = (rows == np.rint(start - 1)) | (rows == np.rint(end))
    around = (rows > start - 1.5) & (rows < end + 0.5)
    thick = line.thickness + 2 * _SPARE
    crossed = (beside & ink).any(axis=0) | ((around & ink).sum(axis=0) >= thick)  # or a stroke lies along it
    inside = (rows > start - 0.5) & (rows < end - 0.5)
    cleared[top:bottom][inside & ~crossed] = 0
    band[top:bottom] |= inside


def _clear_sides(core: Mask, *, level: bool, upright: bool) -> tuple[Mask, dict[str, Line]]:
    """Clears the sides of a box and all beyond them, where an upright and a level side occur together; and pairs of strips.

    `level` and `upright` tell that such lines were cleared before. Returns the mask, and the sides and strips that were
    cleared.
    """
    _, _, wide, high = cv2.boundingRect(core)
    long = {"top": wide, "bottom": wide, "left": high, "right": high}  # at most as long as the ink
    found = {
        name: side
        for name, view in _views(core).items()
        if long[name] >= SHORTEST_SIDE * view.shape[1] and (side := _find_side(view)) is not None
    }
    if level or upright or len(found) < 3:  # of a box with gaps, three sides are found
        found = {name: side for name, side in found.items() if side.share > LONG}
    levels, uprights = ([name for name in names if name in found] for names in (("top", "bottom"), ("left", "right")))
    pairs = [
        name for names in (levels, uprights) if len(names) == 2 and all(found[one].flush for one in names) for name in names
    ]
    chosen = list(found) if (levels or level) and (uprights or upright) else pairs
    if not chosen:
        return core, {}
    thickest = sorted(found[name].thickness for name in chosen)[len(chosen) // 2] + 1  # where a stroke lies along one side
    cleared = core.copy()
    for name in chosen:
        view, side = _views(cleared)[name], found[name]
        thickness = side.thickness if side.flush else min(side.thickness, thickest)
        end = side.start + thickness + _SOFT_EDGE
        beyond = view[: int(end.max()) + 1]
        beyond[np.arange(len(beyond))[:, None] < end] = 0
    return cleared, {name: found[name] for name in chosen}


def _views(pixels: Mask) -> dict[str, Mask]:
    """Returns views of the crop that have its top, bottom, left and right edge as first row."""
    turned = pixels.T
    return {"top": pixels, "bottom": pixels[::-1], "left": turned, "right": turned[::-1]}


def _find_side(ink: Mask) -> Line | None:
    """Finds a straight line that is the first ink below the first row in most columns."""
    height, width = ink.shape
    near = ink[: max(3, round(DEEPEST_SIDE * height))]
    first = near.argmax(axis=0)
    columns = np.flatnonzero(near.any(axis=0))
    if len(columns) < _SEEN * width:
        return None
    start = _fit(columns, first[columns], width)
    if start is None:
        return None
    straight = columns[np.abs(first[columns] - start[columns]) <= _STRAIGHT]
    count = len(straight)
    if count < SHORTEST_SIDE * width:
        return None
    first = first[straight]
    inner = ink[:, straight] > 0
    inner |= np.arange(height)[:, None] < first
    ends = np.where(inner.all(axis=0), height, inner.argmin(axis=0))
    thickness = int(_rank(ends - first, _BARE))
    if thickness > THICKEST_SIDE * height:
        return None
    flush = count > _ACROSS * width and np.count_nonzero(first <= 1) > _FLUSH * count
    return Line(start, thickness, count / width, flush=bool(flush))


def _fit(columns: NDArray[np.intp], rows: NDArray[Any], width: int) -> NDArray[np.float64] | None:
    """Fits a straight line by the medians of its outer thirds; returns its row in each column, or None if it is steep."""
    third = max(1, len(columns) // 3)
    left, right = int(columns[:third].sum()) / third, int(columns[-third:].sum()) / third
    start = _rank(rows[:third], 0.5)
    slope = (_rank(rows[-third:], 0.5) - start) / max(1.0, right - left)
    return start + slope * (np.arange(width, dtype=np.float64) - left) if abs(slope) <= STEEPEST else None


def _rank(values: NDArray[Any], share: float) -> float:
    """Returns the value that `share` of the others don't exceed; NumPy's quantile and median are ten times slower."""
    at = int(share * (len(values) - 1) + 0.5)
    parted = values.copy()
    parted.partition(at)
    return float(parted[at])
