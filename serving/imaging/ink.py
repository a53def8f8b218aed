"""Ink detection: separates the ink of a digit from the paper, in a grey photo."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LEAST_CONTRAST = 24  # grey levels of 255; a pixel closer to the paper than this is paper
SPECK = 0.13  # a piece of ink below this share of the largest piece is a speck
LINE = 0.95  # ink over this share of a row's width, or a column's height, is a ruling line
LINE_WIDTH = 3  # pixels; a thicker stroke is not a ruling line

Grey = NDArray[np.float64]
Mask = NDArray[np.bool_]


def find_ink(photo: NDArray[np.uint8]) -> Grey:
    """Estimates the share of each pixel that ink covers.

    Paper is assumed to have one colour, under light that changes slowly, and to fill most of the photo's edge. Ink is darker
    than paper, or lighter if most of the contrast is. Otsu's threshold separates ink from shadows. Ruling lines from edge to
    edge and specks are removed. The remaining strokes keep their grey edges.

    Args:
        photo: (height, width) uint8, 0 black to 255 white. A side of a hundred pixels shows every detail of a digit.

    Returns:
        (height, width) float64, 0 paper to 1 ink; all 0 if nothing stands out from the paper.

    Source of the threshold: Otsu 1979, A Threshold Selection Method from Gray-Level Histograms.
    """
    grey = photo.astype(np.float64)
    paper, noise = _estimate_paper(grey)
    difference = grey - paper
    strong = difference[np.abs(difference) > max(6 * noise, LEAST_CONTRAST)]
    if strong.sum() > 0:
        difference, paper = -difference, 255 - paper
    depth = np.clip(-difference / np.maximum(paper, 32), 0, 1)  # relative to the light, so that shadows make no difference
    faint = 4 * noise / max(paper.mean(), 32)
    depth = _remove_lines(depth, faint)
    core = _remove_specks(depth > max(_find_threshold(depth), LEAST_CONTRAST / 512))
    if not strong.size or not core.any():
        return np.zeros_like(grey)
    inked = depth[core]
    tenth = inked.size // 10
    full = float(np.partition(inked, -1 - tenth)[-1 - tenth])
    faint = min(faint, full / 2)
    near = _grow(core, max(1, round(max(core.shape) / 28)))
    ink: Grey = np.where(near, np.clip((depth - faint) / (full - faint), 0, 1), 0)
    return ink


def _estimate_paper(grey: Grey) -> tuple[Grey, float]:
    """Estimates the brightness of the paper, (height, width), under the ink too, and the standard deviation of its noise.

    A plane is fitted to the edge of the photo, then a quadratic surface to the pixels near that plane.
    """
    terms = _build_terms(*grey.shape)
    at_edge = grey[terms.edge]
    weights = np.ones(len(at_edge))
    for _ in range(4):  # approaches the least absolute deviations, which ink on part of the edge hardly moves
        residuals = at_edge - terms.at_edge @ _fit(terms.at_edge, at_edge, weights)
        weights = 1 / np.maximum(np.abs(residuals), 2)
    factors = np.concatenate([_fit(terms.at_edge, at_edge, weights), np.zeros(3)])
    noise, sample = _estimate_noise(grey), grey[terms.sample].ravel()
    for _ in range(3):
        near = np.abs(sample - terms.at_sample @ factors) < 4 * noise + 4
        if near.sum() < sample.size / 8:
            break  # too little paper in the sample: the edge is the better estimate
        factors = _fit(terms.at_sample[near], sample[near])
    constant, right, down, both, right_squared, down_squared = factors
    x, y = terms.x, terms.y
    along = constant + x * (right + right_squared * x)
    return np.clip(along + y * (down + down_squared * y + both * x), 0, 255), noise


@dataclass(frozen=True)
class _Terms:
    """Terms of a quadratic surface over photos of one size.

    Attributes:
        x: (width,) coordinates from -1 to 1.
        y: (height, 1) coordinates from -1 to 1.
        edge: (height, width) mask of the photo's edge.
        at_edge: (E, 3) constant, x and y at the pixels of the edge.
        sample: slices of about 400 pixels, spread over the photo.
        at_sample: (S, 6) constant, x, y, x y, x squared and y squared at the pixels of the sample.
    """

    x: Grey
    y: Grey
    edge: Mask
    at_edge: Grey
    sample: tuple[slice, slice]
    at_sample: Grey


@lru_cache(128)
def _build_terms(height: int, width: int) -> _Terms:
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


def _estimate_noise(grey: Grey) -> float:
    """Estimates the standard deviation of noise, at least 1: 1.48 / sqrt(2) times the median difference of neighbours."""
    sparse = (grey[::3], grey.T[::3])  # every third row, and column, suffices
    steps = [np.median(np.abs(np.diff(part))) for part in sparse if part.shape[1] > 1]
    return max(1.05 * float(min(steps, default=0)), 1)  # the smaller one crosses fewer strokes


def _fit(points: Grey, values: Grey, weights: Grey | float = 1.0) -> Grey:
    """Solves weighted least squares; coefficients that the points don't determine are 0."""
    weighted = points.T * weights
    square = weighted @ points + 1e-6 * np.eye(points.shape[1])
    return np.asarray(np.linalg.solve(square, weighted @ values), np.float64)


def _find_threshold(depth: Grey) -> float:
    """Returns Otsu's threshold for `depth`, 0 to 1: it maximizes the variance between the two classes."""
    counts = np.bincount((depth * 255).astype(np.intp).ravel(), minlength=256)
    below = np.cumsum(counts)
    sums = np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * (below / below[-1]) - sums) ** 2 / (below * above)
    return float(np.argmax(np.where(below * above > 0, between, -1))) / 255


def _remove_lines(depth: Grey, faint: float) -> Grey:
    """Removes thin rows and columns of ink from edge to edge, and keeps the strokes that cross them."""
    cleared = depth.copy()
    for ink, result in ((depth, cleared), (depth.T, cleared.T)):  # rows, then columns; the transposes are views
        inked = _pad(ink > faint, LINE_WIDTH)[:, LINE_WIDTH:-LINE_WIDTH]
        above, row, below = (inked[LINE_WIDTH + by : LINE_WIDTH + by + len(ink)] for by in (-1, 0, 1))
        for index in np.flatnonzero((above | row | below).mean(axis=1) >= LINE).tolist():  # a line may be slightly askew
            crossed = inked[index] | inked[index + 2 * LINE_WIDTH]
            within = LINE_WIDTH <= index < len(ink) - LINE_WIDTH
            if crossed.mean() < (0.5 if within else 1e-9):  # at the photo's edge this may be the upper stroke of a 7
                result[max(index - LINE_WIDTH + 1, 0) : index + LINE_WIDTH, ~crossed] = 0
    return cleared if cleared.max() > depth.max() / 2 else depth  # a 1 may look like a line


def _remove_specks(core: Mask) -> Mask:
    """Removes the pieces of `core` that are small beside its largest. Pixels that share a side or a corner are one piece.

    Source: connected components by runs, He, Chao & Suzuki 2008, A Run-Based Two-Scan Labeling Algorithm.
    """
    padded = _pad(core, 1)  # so that no run continues in the next row
    width = padded.shape[1]
    turns = np.flatnonzero(np.diff(padded.ravel().view(np.int8))) + 1
    starts, ends = turns[0::2], turns[1::2]
    first = np.searchsorted(ends, starts + width, "left")  # first run of the next row that touches each run
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


def _grow(core: Mask, pixels: int) -> Mask:
    """Grows `core` by up to `pixels` steps up, down or sideways."""
    grown = _pad(core, pixels)
    for _ in range(pixels):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown[pixels:-pixels, pixels:-pixels]


def _pad(mask: Mask, pixels: int) -> Mask:
    """Adds a border of paper, `pixels` wide, on every side; np.pad is ten times slower."""
    padded = np.zeros((mask.shape[0] + 2 * pixels, mask.shape[1] + 2 * pixels), bool)
    padded[pixels:-pixels, pixels:-pixels] = mask
    return padded
