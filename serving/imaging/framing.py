"""Framing: scales and centres a digit as MNIST does, which networks trained on MNIST need; and measures framed ink."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIDE = 20  # longer side of the scaled ink, in pixels, within an image of 28x28

_MOMENTS = np.stack([np.ones((28, 28)), *np.indices((28, 28))], axis=-1).reshape(-1, 3).astype(np.float32)  # (784, 3)
_MIDDLES = np.stack([np.arange(SIDE) + 0.5, np.ones(SIDE)], axis=-1)  # (20, 2): middles of the rows or columns, and ones
_CHUNK = 64  # images; BLAS starts threads for larger products


def frame(ink: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scales one digit into 20x20, and centres it by its centre of mass in 28x28, as the makers of MNIST did.

    MNIST was made from binary crops. Here grey levels are kept: a pixel of 0.4 counts as covered by two fifths. Every pixel
    above 0 belongs to the digit, so paper, specks and lines must be 0. Paper around the digit makes no difference.

    Args:
        ink: (height, width) float or bool, 0 paper to 1 ink.

    Returns:
        (28, 28) uint8, 0 paper to 255 ink; all 0 if there is no ink.

    Source: Yadav & Bottou 2019, Cold Case: The Lost MNIST Digits, arXiv 1905.10498, and its code, facebookresearch/qmnist.
    That code differs from MNIST by at most 3 grey levels on nearly every image.
    """
    framed = np.zeros((28, 28), np.uint8)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not rows.size:
        return framed
    square = _center_in_square(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    weights = _scaling_weights(len(square))
    scaled = weights @ square @ weights.T
    grey = np.minimum(255 * scaled / min(1, scaled.max()) + 0.5, 255).astype(np.uint8)

    (_, down), (right, mass) = (_MIDDLES.T @ grey @ _MIDDLES).tolist()  # both moments and the sum at once
    top, left = int(15 - down / mass), int(15 - right / mass)
    # Up to four rows or columns may lie beyond the edge; they are cropped.
    framed[max(top, 0) : top + SIDE, max(left, 0) : left + SIDE] = grey[max(-top, 0) : 28 - top, max(-left, 0) : 28 - left]
    return framed


def measure(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Measures the amount and the position of the ink on framed images.

    Args:
        images: (n, 28, 28) or (n, 784) uint8, n at least 1, 0 paper to 255 ink, each with some ink.

    Returns:
        ink: (n,) share of the image that is ink, with grey in proportion.
        centres: (n, 2) row and column of the centre of mass, from 0 to 27; 14 ± 0.5 on images framed as MNIST.
    """
    pixels = images.reshape(-1, 784)
    parts = [pixels[start : start + _CHUNK].astype(np.float32) @ _MOMENTS for start in range(0, len(pixels), _CHUNK)]
    moments: NDArray[np.float32] = np.concatenate(parts)
    return moments[:, 0] / np.float32(255 * 784), moments[:, 1:] / moments[:, :1]


def _center_in_square(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centres the bounding box of the ink in a square of at least 10 pixels, then doubles that to at least 20 pixels.

    In MNIST the square stops at the edge of the crop instead of extending past it, but its crops had room.
    """
    height, width = box.shape
    side = max(height, width, 10)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side))
    square[top : top + height, left : left + width] = box
    while len(square) < SIDE:
        square = square.repeat(2, axis=0).repeat(2, axis=1)
    return square


@lru_cache(256)
def _scaling_weights(side: int) -> NDArray[np.float64]:
    """Returns the weights that scale `side` pixels to 20: (20, side), the overlap of each pixel with each of the 20.

    A pixel covers 0.99 of its footprint, and counts in full if that crosses no border. MNIST shows traces of this, as
    Yadav & Bottou found.
    """
    scale = SIDE / side
    start = np.arange(side) * scale
    end = start + 0.99 * scale
    target = np.arange(SIDE)[:, None]
    covered = np.clip(np.minimum(end, target + 1) - np.maximum(start, target), 0, None)
    first, last = np.floor(start + 1e-11), np.ceil(end - 1e-11) - 1
    weights: NDArray[np.float64] = np.where(first == last, scale * (target == first), covered)
    return weights
