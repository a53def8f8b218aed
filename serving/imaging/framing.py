"""Frames ink as MNIST frames it, which is how a network trained on MNIST wants to see it; and measures framed ink."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIDE = 20  # pixels that the longer side of the ink is scaled to, in an image of 28

_MOMENTS = np.stack([np.ones((28, 28)), *np.indices((28, 28))], axis=-1).reshape(-1, 3).astype(np.float32)  # (784, 3)
_TOGETHER = 64  # images; multiplying more of them at once, BLAS would start threads


def frame(ink: NDArray[np.float64]) -> NDArray[np.uint8]:
    """One digit scaled into 20x20 and put by its centre of mass into 28x28, as MNIST's makers did.

    They started from NIST's binary crops. Here grey is kept: a pixel of 0.4 counts as one that is two fifths full, and
    every pixel above 0 belongs to the digit, so that paper, specks and lines must have been set to 0 before. How much
    paper there is around the ink makes no difference.

    Args:
        ink: (height, width) float, 0 paper to 1 ink; bool will do.

    Returns:
        (28, 28) uint8, 0 paper to 255 ink; all paper where there is no ink.

    Source: Yadav & Bottou 2019, Cold Case: The Lost MNIST Digits, arXiv 1905.10498, and the code that it describes,
    facebookresearch/qmnist, which differs from MNIST by at most 3 grey levels on nearly every image.
    """
    framed = np.zeros((28, 28), np.uint8)
    if not ink.any():
        return framed
    square = _square(ink.astype(np.float64))
    scaled = _weights(square.shape[0]) @ square @ _weights(square.shape[1]).T
    grey = np.clip(np.floor(255 * scaled / min(1, scaled.max()) + 0.5), 0, 255).astype(np.uint8)

    middles = np.arange(SIDE) + 0.5
    top, left = (int(15 - middles @ grey.sum(axis=axis) / grey.sum()) for axis in (1, 0))
    canvas = np.zeros((48, 48), np.uint8)  # a margin of 10 for what is cut off
    canvas[10 + top : 30 + top, 10 + left : 30 + left] = grey
    framed[:] = canvas[10:38, 10:38]
    return framed


def measure(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much ink there is on framed images, and where.

    Args:
        images: (n, 28, 28) or (n, 784) uint8, one at least, 0 paper to 255 ink, with some ink on each.

    Returns:
        The share of an image that is ink, grey counting in part, (n,); and the row and the column of its centre of mass,
        (n, 2), from 0 to 27: 14 give or take a half, when it was framed as MNIST is.
    """
    pixels = images.reshape(-1, 784)
    parts = [pixels[start : start + _TOGETHER].astype(np.float32) @ _MOMENTS for start in range(0, len(pixels), _TOGETHER)]
    moments: NDArray[np.float32] = np.concatenate(parts)
    return moments[:, 0] / np.float32(255 * 784), moments[:, 1:] / moments[:, :1]


def _square(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ink's bounding box in the middle of a square of at least 10 pixels, doubled until there are at least 20.

    MNIST's makers let the square slide along the edge of the crop rather than reach over it; their crops had room.
    """
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(*box.shape, 10)
    before = [(side - length) // 2 for length in box.shape]
    square = np.zeros((side, side))
    square[before[0] : before[0] + box.shape[0], before[1] : before[1] + box.shape[1]] = box
    while len(square) < SIDE:
        square = square.repeat(2, axis=0).repeat(2, axis=1)
    return square


@lru_cache(256)
def _weights(side: int) -> NDArray[np.float64]:
    """How much of each of `side` pixels falls on each of 20, (20, side): its area there, in pixels of the 20.

    A pixel is spread over 0.99 of its footprint only, and where that crosses no border all of it counts: MNIST shows the
    traces of this, its rediscoverers say.
    """
    scale = SIDE / side
    start = np.arange(side) * scale
    end = start + 0.99 * scale
    place = np.arange(SIDE)[:, None]
    covered = np.clip(np.minimum(end, place + 1) - np.maximum(start, place), 0, None)
    first, last = np.floor(start + 1e-11), np.ceil(end - 1e-11) - 1
    weights: NDArray[np.float64] = np.where(first == last, scale * (place == first), covered)
    return weights
