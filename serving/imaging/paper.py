"""Paper and light: estimates the bare paper under the ink, and how far each pixel is darker than that."""

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

THICKEST = 0.3  # of the crop's longer side; a thicker dark area is paper in the dark, not a stroke
LEAST_CONTRAST = 24  # of 255; nothing fainter is ink
_SMALL = 32  # longer side of the picture that narrow details are compared on, about
_PAPER_BORDER = 0.65  # share of the border; with more of it on one side of the threshold, that is paper
_EVEN = 0.65  # of the brightest paper's level; where the darkest is below, light or something dark lies across the crop
_DIM = 0.8  # of the brightest paper's level; darker paper is in a shadow
_DIMMEST = 64  # of 255; depth is a share of no less light, since in the dark a grey level of noise is a large share

# Noise is Gaussian, and its standard deviation is that of one pixel. Half of the differences of two neighbours are below
# 0.95 of it: 0.6745, the quartile of the normal distribution, times the root of 2.
_OF_MEDIAN_STEP = 1.05  # 1 / 0.95
_BARE_PAPER = 0.25  # quantile of the depth, that of bare paper: most of a crop is paper
_OF_QUARTILE = 0.7  # about 0.6745: from the quartile of bare paper to its mean
_NOISE_ALONE, _CERTAIN = 3, 6  # standard deviations of noise that noise may reach; that ink exceeds somewhere

# Strokes are thinner than paper: signs of dark ink on light paper, or of light ink on dark paper.
_THICKNESS_WEIGHT = 0.8  # of the logarithm of the ratio of both thicknesses, against two signs from -1 to 1
_LIGHT_PAPER = 0.1  # of the sum of the signs: where they are equal, paper is light, as most paper is
_STROKE = 5  # pixels of the small picture; strokes are narrower
_STANDS_OUT = 12  # of 255; less is the noise of the small picture
_EXTENDED = 0.7  # share of the nearby paper's level that a photo goes on with beyond its edge, at least

Pixels = NDArray[np.uint8]


class Depth(NamedTuple):
    """How dark the ink is, under even light.

    Attributes:
        pixels: (height, width) uint8, 0 as bright as the paper, 255 black; light ink on dark paper is inverted.
        core: (height, width) uint8, 255 certainly ink or printing, 0 paper.
        faint: the deepest that noise alone reaches.
        photo: (height, width) uint8, the photo, inverted for light ink.
        paper: (height, width) uint8, the bare paper under the ink.
    """

    pixels: Pixels
    core: Pixels
    faint: int
    photo: Pixels
    paper: Pixels

    @property
    def dark(self) -> Pixels:
        """Ink and dim paper: (height, width) uint8, 255 dark, 0 others."""
        if not is_uneven(self.paper):
            return self.core
        dim: Pixels = cv2.compare(self.paper, _DIM * cv2.minMaxLoc(self.paper)[1], cv2.CMP_LT)
        np.bitwise_or(self.core, dim, out=dim)
        return dim


def even_out(photo: Pixels) -> Depth:
    """Divides a photo by its paper, and tells dark ink on light paper from light ink on dark paper.

    Paper is light if it fills most of the border. Else both are tried: strokes are thinner than paper, and narrow details
    are ink.

    Args:
        photo: (height, width) uint8, 0 black to 255 white.
    """
    _, bright = cv2.threshold(photo, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    border = sum(map(np.count_nonzero, (bright[0], bright[-1], bright[:, 0], bright[:, -1])))
    share = border / (2 * sum(photo.shape))
    if share > _PAPER_BORDER:
        return _divide(photo, paper_border=share < 1)
    dark = _divide(photo, paper_border=False)
    light = _divide(cv2.bitwise_not(photo), paper_border=share < 1 - _PAPER_BORDER)
    if not dark.core.any() or not light.core.any():
        return dark if dark.core.any() else light
    thicker = math.log(_measure_thickness(light.core) / _measure_thickness(dark.core))
    balance = _compare_details(photo) + _THICKNESS_WEIGHT * thicker
    return dark if balance > -_LIGHT_PAPER else light


def is_uneven(paper: Pixels) -> bool:
    """Tells whether paper is more than a third darker in one place than in another."""
    darkest, brightest, _, _ = cv2.minMaxLoc(paper)
    return darkest < _EVEN * brightest


def quantile(pixels: Pixels, share: float, mask: Pixels | None = None) -> int:
    """Returns the grey level that `share` of the pixels, or of those in the mask, don't exceed; 0 if there are none."""
    below = cv2.calcHist([pixels], [0], mask, [256], [0, 256]).cumsum()
    return int(below.searchsorted(share * below[-1]))


def _sample_quantile(pixels: Pixels, share: float) -> int:
    """Returns the grey level that `share` of a sample of the pixels don't exceed."""
    sample = pixels[::2, ::2].flatten()  # a copy, partitioned in place
    if not sample.size:
        return 0
    at = int(share * sample.size)
    sample.partition(at)
    return int(sample[at])


def _divide(photo: Pixels, *, paper_border: bool) -> Depth:
    """Divides a photo by its paper.

    The paper under the ink is the grey closing: the brightest level that surrounds every place within a square as wide as
    the thickest stroke. Slow light, the edges of shadows and wide dark areas are kept by a closing, so they are paper.
    """
    height, width = photo.shape
    reach = round(THICKEST * max(height, width) / 2)
    padded = _extend(photo, reach, paper_border=paper_border)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _square(2 * reach + 1))
    paper = closed[reach : reach + height, reach : reach + width]
    return measure_depth(photo, paper)


def measure_depth(photo: Pixels, paper: Pixels) -> Depth:
    """Measures depth as the share of the paper's light that is missing, and parts ink from paper by that.

    Args:
        photo: (height, width) uint8, 0 black to 255 white, ink darker than paper.
        paper: (height, width) uint8, the bare paper under the ink, nowhere darker than the photo.
    """
    darkest = cv2.minMaxLoc(paper)[0]
    light = paper if darkest >= _DIMMEST else cv2.max(paper, _DIMMEST)
    pixels = cv2.divide(cv2.subtract(paper, photo), light, scale=255)
    steps = cv2.absdiff(photo[::2, 1:], photo[::2, :-1])
    noise = _OF_MEDIAN_STEP * _sample_quantile(steps, 0.5) * 255 / max(darkest, _DIMMEST)  # where it is darkest
    bias = (
        _sample_quantile(pixels, _BARE_PAPER) + _OF_QUARTILE * noise
    )  # of the paper; a closing follows the brightest noise
    least, faint = max(bias + _CERTAIN * noise, LEAST_CONTRAST), bias + _NOISE_ALONE * noise
    if cv2.minMaxLoc(pixels)[1] < least:
        return Depth(pixels, np.zeros_like(pixels), round(faint), photo, paper)
    threshold, core = cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    if threshold < max(faint, least / 2):
        _, core = cv2.threshold(pixels, max(faint, least / 2), 255, cv2.THRESH_BINARY)
    return Depth(pixels, core, round(faint), photo, paper)


def _extend(photo: Pixels, reach: int, *, paper_border: bool) -> Pixels:
    """Extends a photo by `reach` pixels on every side, at the level of its edge.

    Without that, light that falls off towards the edge looks like ink. If most of the border is paper, the extension has at
    least a part of the level that paper has near the edge, so that a stroke along the edge is not taken for dark paper.
    """
    extended: Pixels
    if not paper_border:
        extended = cv2.copyMakeBorder(photo, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
        return extended
    edged = photo.copy()
    for rows, edge in ((edged[: reach + 1], edged[0]), (edged[-reach - 1 :], edged[-1])):
        np.maximum(edge, cv2.reduce(rows, 0, cv2.REDUCE_MAX)[0] * _EXTENDED, out=edge, casting="unsafe")
    for columns, edge in ((edged[:, : reach + 1], edged[:, 0]), (edged[:, -reach - 1 :], edged[:, -1])):
        np.maximum(edge, cv2.reduce(columns, 1, cv2.REDUCE_MAX)[:, 0] * _EXTENDED, out=edge, casting="unsafe")
    extended = cv2.copyMakeBorder(edged, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    extended[reach : reach + photo.shape[0], reach : reach + photo.shape[1]] = photo
    return extended


def _measure_thickness(core: Pixels) -> float:
    """Returns the mean distance of the pixels of a mask from its outline, plus 0.1, since a ratio of two is taken."""
    return cv2.mean(cv2.distanceTransform(core, cv2.DIST_L2, 3), core)[0] + 0.1


def _compare_details(photo: Pixels) -> float:
    """Compares dark and light details: from -2, all are light, to 2, all are dark.

    Two signs are added: narrow details, and what differs from its surroundings, a quarter of the crop wide.
    """
    factor = max(1, round(max(photo.shape) / _SMALL))
    height, width = (max(1, side // factor) for side in photo.shape)
    even = cv2.blur(photo, (3, 3), borderType=cv2.BORDER_REPLICATE)[: height * factor, : width * factor]
    small = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    dark = cv2.norm(cv2.morphologyEx(small, cv2.MORPH_CLOSE, _square(_STROKE)), small, cv2.NORM_L2SQR)
    light = cv2.norm(cv2.morphologyEx(small, cv2.MORPH_OPEN, _square(_STROKE)), small, cv2.NORM_L2SQR)
    around = cv2.medianBlur(small, max(3, max(small.shape) // 4 | 1))
    darker = cv2.sumElems(cv2.subtract(cv2.subtract(around, small), _STANDS_OUT))[0]
    lighter = cv2.sumElems(cv2.subtract(cv2.subtract(small, around), _STANDS_OUT))[0]
    return (dark - light) / (dark + light + 1) + (darker - lighter) / (darker + lighter + 1)


@lru_cache(256)
def _square(side: int) -> Pixels:
    return np.ones((side, side), np.uint8)
