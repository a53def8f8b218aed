"""Other pens and scanners: true digits that are coarse, binary, of another aspect, thick, thin, broken, outlined or printed.

They keep the network from refusing digits that only look unlike MNIST's.
"""

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from serving.imaging.framing import frame
from training.dataset import Examples
from training.synthesis.letters import printed

_PRINTED = 0.2  # share of printed digits
_THICK = 64  # pixels per side of the enlarged image that pens of other widths are drawn on


def other_pens(digits: Examples, count: int, random: np.random.Generator) -> Examples:
    """Draws `count` digits, most of them by changing a random one of `digits`; framed as MNIST frames them."""
    chosen = random.integers(len(digits), size=count)
    images, labels = np.empty((count, 28, 28), np.uint8), digits.labels[chosen].copy()
    for index, source in enumerate(chosen.tolist()):
        if random.random() < _PRINTED:
            labels[index] = random.integers(10)
            changed = printed(str(labels[index]), random)
        else:
            changed = (_rescan, _repen)[random.integers(2)](digits.images[source], random)
        images[index] = changed if changed.any() else digits.images[source]
    return Examples(images, labels)


def crop_ink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cuts the bounding box of the ink out of an image that has ink."""
    x, y, width, height = cv2.boundingRect(image)
    return image[y : y + height, x : x + width]


def _rescan(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Samples a digit at another resolution and aspect, and makes half of them binary."""
    box = crop_ink(image)
    height = int(random.integers(8, 40))
    aspect = np.clip(box.shape[1] / box.shape[0] * random.uniform(0.7, 1.4), 0.15, 1.3)
    scanned = cv2.resize(box, (max(3, round(height * aspect)), height), interpolation=cv2.INTER_AREA) / 255
    return frame(np.asarray(scanned > random.uniform(0.25, 0.65) if random.random() < 0.5 else scanned, np.float64))


def _repen(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws a digit with a thicker or thinner pen, outlines it, or breaks its strokes."""
    large = cv2.resize(image, (_THICK, _THICK), interpolation=cv2.INTER_CUBIC)
    ink: MatLike = (large > 110).astype(np.uint8)
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (int(random.integers(3, 8)),) * 2)
    thin = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    match int(random.integers(4)):
        case 0 | 1:
            ink = cv2.dilate(ink, pen)
        case 2:
            thinner = cv2.erode(ink, thin)
            ink = thinner if thinner.sum() > ink.sum() / 4 else ink
            if random.random() < 0.5:  # broken
                kept = cv2.resize(random.random((9, 9)), (_THICK, _THICK), interpolation=cv2.INTER_LINEAR) > 0.25
                ink = np.where(kept, ink, 0)
        case _:
            thick = cv2.dilate(ink, thin)
            ink = thick - cv2.erode(thick, thin)  # outline
    return frame((ink > 0).astype(np.float64))
