"""Ink detection: finds the ink of one digit in a grey photo."""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.imaging.bands import clear_band
from serving.imaging.components import BoundingBox, choose, find_components, label_type
from serving.imaging.paper import even_out, is_uneven, quantile
from serving.imaging.printing import clear_printing
from serving.imaging.whole import is_cut_close, is_surrounded_by_paper, is_whole

LEAST_SIDE = 4  # pixels; no digit is seen on a smaller photo
_NEAR_EDGE = 2  # pixels; the soft edge of printing that begins at the crop's edge
_SUSPICIOUS = 0.7  # of the crop's height or width; no printing is looked for in less ink that is far from the edges
_FULL = 0.9  # quantile of the depth of the digit's pixels that counts as full ink
_SOFT_EDGES = 28  # in the crop's longer side: such an edge of a stroke becomes one pixel of the framed image
TRACE = 0.2  # of full ink; lighter traces of ink are paper or noise
FADED = 0.02  # of the digit's pixels; with more traces that hang on to the digit, glare has faded a part of the digit
PRINTED = 0.8  # of the crop's height or width; traces over more of the crop are of a light print, such as a box
_SPECK = np.ones((2, 2), np.uint8)

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

    Light is evened out, printing is cleared, the components that are the digit are chosen, and their grey edges are kept.

    Args:
        photo: (height, width) uint8, 0 black to 255 white. A side of a hundred pixels shows every detail of a digit.
    """
    if min(photo.shape) < LEAST_SIDE:
        return _NOTHING
    evened = even_out(photo)
    around = BoundingBox(*cv2.boundingRect(evened.core))
    near_edge = _is_near_edge(around, photo.shape)
    if near_edge:
        evened = clear_band(evened)
    depth, core, faint, photo, paper = evened
    if near_edge or around.width > _SUSPICIOUS * core.shape[1] or around.height > _SUSPICIOUS * core.shape[0]:
        core = clear_printing(core, depth, faint)
    labels, components = find_components(core)
    if not components:
        return _NOTHING
    choice = choose(components, core.shape)
    reach = max(1, round(max(core.shape) / _SOFT_EDGES))
    box = choice.box
    part = np.s_[max(box.top - reach, 0) : box.bottom + reach, max(box.left - reach, 0) : box.right + reach]
    grey, digit = depth[part], cv2.compare(labels[part], choice.labels[0], cv2.CMP_EQ)
    for label in choice.labels[1:]:
        digit |= cv2.compare(labels[part], label, cv2.CMP_EQ)
    full = max(quantile(grey, _FULL, digit), 2)  # so that its half is ink
    whole = choice.alone and is_whole(digit, grey, full, box, core.shape)
    if whole and is_uneven(paper[part]) and not is_cut_close(box, core.shape):
        whole = is_surrounded_by_paper(digit, photo[part])
    near = cv2.dilate(digit, _diamond(reach))
    if whole and core is evened.core:  # what is left of printing that was cleared is no trace of the pen
        _, traces = cv2.threshold(depth, max(faint, TRACE * full), 255, cv2.THRESH_BINARY)
        most = FADED * cv2.countNonZero(digit)
        if cv2.countNonZero(traces) - cv2.countNonZero(cv2.bitwise_and(traces[part], near)) > most:
            whole = _count_faded(traces, core, labels == choice.labels[0], reach) <= most
    bare = min(faint, full // 2)
    cover = cv2.convertScaleAbs(cv2.subtract(grey, bare), alpha=255 / (full - bare))  # ends at 255
    cover = cv2.bitwise_and(cover, near)
    return Ink(cover / 255, whole)


def _count_faded(traces: Pixels, core: Pixels, digit: NDArray[np.bool_], reach: int) -> int:
    """Counts pixels of the traces that hang on to the digit, beyond its soft edge: parts of strokes that glare has faded.

    Traces that reach the crop's edge, or nearly, are of printing or shadow, and don't count.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(traces, ltype=label_type(traces))
    height, width = traces.shape
    rest = cv2.subtract(traces, cv2.dilate(core, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)))
    rest = cv2.morphologyEx(rest, cv2.MORPH_OPEN, _SPECK)
    faded = 0
    for label in np.unique(labels[digit]).tolist():
        box = BoundingBox(*stats[label, :4].tolist())
        if label and not box.touches(traces.shape) and box.width < PRINTED * width and box.height < PRINTED * height:
            faded += cv2.countNonZero(rest[labels == label])
    return faded


def _is_near_edge(box: BoundingBox, crop: tuple[int, ...]) -> bool:
    height, width = crop
    near = _NEAR_EDGE
    return box.left <= near or box.top <= near or box.right >= width - near or box.bottom >= height - near


@lru_cache(64)
def _diamond(radius: int) -> Pixels:
    """Returns a structuring element, all pixels up to `radius` steps away."""
    steps = np.abs(np.arange(-radius, radius + 1))
    return (steps + steps[:, None] <= radius).astype(np.uint8)
