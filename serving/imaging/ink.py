"""Tells the ink of a digit from the paper around it, in a grey photo."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LEAST_CONTRAST = 24  # grey levels of 255; what differs from the paper by less is paper
SPECK = 0.13  # a piece of ink that is smaller than this share of the largest is none
LINE = 0.95  # a row of ink over this share of the photo's width is a ruling line, and a column likewise,
LINE_WIDTH = 3  # if it is no thicker than so many pixels

Grey = NDArray[np.float64]
Mask = NDArray[np.bool_]


def find_ink(photo: NDArray[np.uint8]) -> Grey:
    """How full of ink each pixel is.

    The paper is taken to be of one colour under a light that changes slowly, and to make up most of the photo's edge. Ink
    is darker than that, or lighter where most of what differs from it is lighter. Otsu's threshold parts it from shadows;
    ruling lines from edge to edge and specks are dropped; what is left keeps the grey of its edges.

    Args:
        photo: (height, width) uint8. A hundred pixels show all there is to see of a digit.

    Returns:
        (height, width) float64, 0 paper to 1 ink; all 0 where nothing stands out from the paper.

    Source of the threshold: Otsu 1979, A Threshold Selection Method from Gray-Level Histograms.
    """
    grey = photo.astype(np.float64)
    paper, noise = _paper(grey)
    difference = grey - paper
    strong = difference[np.abs(difference) > max(6 * noise, LEAST_CONTRAST)]
    if strong.sum() > 0:
        difference, paper = -difference, 255 - paper
    depth = np.clip(-difference / np.maximum(paper, 32), 0, 1)  # a share of the light, so that shadows make no difference
    faint = 4 * noise / max(paper.mean(), 32)
    depth = _without_lines(depth, faint)
    core = _without_specks(depth > max(_otsu(depth), LEAST_CONTRAST / 512))
    if not strong.size or not core.any():
        return np.zeros_like(grey)
    inked = depth[core]
    tenth = inked.size // 10
    full = float(np.partition(inked, -1 - tenth)[-1 - tenth])
    faint = min(faint, full / 2)
    near = _grown(core, max(1, round(max(core.shape) / 28)))
    ink: Grey = np.where(near, np.clip((depth - faint) / (full - faint), 0, 1), 0)
    return ink


def _paper(grey: Grey) -> tuple[Grey, float]:
    """How bright the paper is, (height, width), under the ink too, and the standard deviation of its noise.

    A quadratic surface is fitted: first a plane to the edge of the photo, then all of it to what lies near.
    """
    terms = _terms(*grey.shape)
    at_edge = grey[terms.edge]
    weights = np.ones(len(at_edge))
    for _ in range(4):  # towards the least sum of distances, which ink on a part of the edge hardly moves
        off = at_edge - terms.at_edge @ _fit(terms.at_edge, at_edge, weights)
        weights = 1 / np.maximum(np.abs(off), 2)
    factors = np.concatenate([_fit(terms.at_edge, at_edge, weights), np.zeros(3)])
    noise, seen = _noise(grey), grey[terms.sample].ravel()
    for _ in range(3):
        near = np.abs(seen - terms.at_sample @ factors) < 4 * noise + 4
        if near.sum() < seen.size / 8:
            break  # so little of it is paper that the edge says more
        factors = _fit(terms.at_sample[near], seen[near])
    constant, right, down, both, right_squared, down_squared = factors
    x, y = terms.x, terms.y
    along = constant + x * (right + right_squared * x)
    return np.clip(along + y * (down + down_squared * y + both * x), 0, 255), noise


@dataclass(frozen=True)
class _Terms:
    """What a quadratic surface over a photo is made of.

    Attributes:
        x: (width,), from -1 to 1.
        y: (height, 1), likewise.
        edge: (height, width), where the photo's edge is.
        at_edge: (E, 3), constant, x and y there.
        sample: about 400 pixels spread all over it.
        at_sample: (S, 6), constant, x, y, x y, x squared and y squared there.
    """

    x: Grey
    y: Grey
    edge: Mask
    at_edge: Grey
    sample: tuple[slice, slice]
    at_sample: Grey


@lru_cache(128)
def _terms(height: int, width: int) -> _Terms:
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    across, down = np.broadcast_arrays(x, y)
    breadth = max(1, min(height, width) // 20)
    edge = np.ones((height, width), bool)
    edge[breadth:-breadth, breadth:-breadth] = False
    at_edge = np.stack([np.ones(edge.sum()), across[edge], down[edge]], axis=1)
    step = max(1, max(height, width) // 20)
    sample = (slice(step // 2, None, step), slice(step // 2, None, step))
    a, d = across[sample].ravel(), down[sample].ravel()
    return _Terms(x, y, edge, at_edge, sample, np.stack([np.ones_like(a), a, d, a * d, a * a, d * d], axis=1))


def _noise(grey: Grey) -> float:
    """The standard deviation of the noise, at least 1: 1.48 times the median difference of neighbours, over root 2."""
    steps = [np.median(np.abs(np.diff(part[::3]))) for part in (grey, grey.T) if part.shape[1] > 1]  # a third says enough
    return max(1.05 * float(min(steps, default=0)), 1)  # of the direction that crosses fewer strokes


def _fit(points: Grey, values: Grey, weights: Grey | float = 1.0) -> Grey:
    """Weighted least squares; what the points leave open is 0."""
    weighted = points.T * weights
    square = weighted @ points + 1e-6 * np.eye(points.shape[1])
    return np.asarray(np.linalg.solve(square, weighted @ values), np.float64)


def _otsu(depth: Grey) -> float:
    """The threshold that parts `depth`, 0 to 1, into two classes that differ most."""
    counts = np.bincount((depth * 255).astype(np.intp).ravel(), minlength=256)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * (below / below[-1]) - sums) ** 2 / (below * above)
    return float(np.argmax(np.where(below * above > 0, between, -1))) / 255


def _without_lines(depth: Grey, faint: float) -> Grey:
    """`depth` without thin rows and columns of ink from edge to edge, but with what crosses them."""
    cleared = depth.copy()
    for ink, left in ((depth, cleared), (depth.T, cleared.T)):  # views of the same numbers
        stained = _padded(ink > faint, LINE_WIDTH)[:, LINE_WIDTH:-LINE_WIDTH]
        above, row, below = (stained[LINE_WIDTH + by : LINE_WIDTH + by + len(ink)] for by in (-1, 0, 1))
        for place in np.flatnonzero((above | row | below).mean(axis=1) >= LINE).tolist():  # it may be a little askew
            crossed = stained[place] | stained[place + 2 * LINE_WIDTH]
            within = LINE_WIDTH <= place < len(ink) - LINE_WIDTH
            if crossed.mean() < (0.5 if within else 1e-9):  # at the photo's edge it may be the upper stroke of a 7
                left[max(place - LINE_WIDTH + 1, 0) : place + LINE_WIDTH, ~crossed] = 0
    return cleared if cleared.max() > depth.max() / 2 else depth  # a 1 may be as straight as a line


def _without_specks(core: Mask) -> Mask:
    """`core` without the pieces that are small beside its largest; pixels that touch, also by a corner, are one piece.

    Source: connected components by runs, He, Chao & Suzuki 2008, A Run-Based Two-Scan Labeling Algorithm.
    """
    padded = _padded(core, 1)  # so that no run goes on in the next row
    width = padded.shape[1]
    turns = np.flatnonzero(np.diff(padded.ravel().view(np.int8))) + 1
    starts, ends = turns[0::2], turns[1::2]
    first = np.searchsorted(ends, starts + width, "left")  # of the runs in the next row that touch
    count = np.searchsorted(starts, ends + width, "right") - first
    upper = np.repeat(np.arange(len(starts)), count)
    lower = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    piece = np.arange(len(starts))
    while (piece[upper] != piece[lower]).any():
        least = np.minimum(piece[upper], piece[lower])
        np.minimum.at(piece, piece[upper], least)
        np.minimum.at(piece, piece[lower], least)
        piece = piece[piece]
    area = np.bincount(piece, ends - starts, minlength=1)
    dropped = area[piece] < max(SPECK * area.max(), 2)
    kept = padded.ravel()
    for start, end in zip(starts[dropped].tolist(), ends[dropped].tolist(), strict=True):
        kept[start:end] = False
    return kept.reshape(padded.shape)[1:-1, 1:-1]


def _grown(core: Mask, pixels: int) -> Mask:
    """`core` and what is at most so many steps up, down or to the side from it."""
    grown = _padded(core, pixels)
    for _ in range(pixels):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown[pixels:-pixels, pixels:-pixels]


def _padded(mask: Mask, pixels: int) -> Mask:
    """`mask` with so many pixels of paper on every side; np.pad takes ten times as long."""
    padded = np.zeros((mask.shape[0] + 2 * pixels, mask.shape[1] + 2 * pixels), bool)
    padded[pixels:-pixels, pixels:-pixels] = mask
    return padded
