"""Drawn digits for tests and benchmarks: many at once, with labels, and digits that touch the edges of a photo."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.samples.draw import draw
from serving.samples.photograph import encode


def draw_many(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws the digits 0 to 9 in turn, `count` images in all.

    Returns:
        The images, (count, 28, 28) uint8, and their labels, (count,) uint8.
    """
    hand = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    return np.stack([draw(int(label), hand) for label in labels]), labels


def cut_out(image: NDArray[np.uint8], random: np.random.Generator) -> bytes:
    """Draws a digit that touches every edge of the photo; returns a PNG file."""
    side = int(28 * random.uniform(2, 4))
    ink = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    rows, columns = (np.flatnonzero((ink > 60).any(axis=axis)) for axis in (1, 0))
    close = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 255
    grey = (200 + random.normal(0, 4, close.shape)) * (1 - close) + 60 * close
    return encode(np.clip(grey, 0, 255).astype(np.uint8), "PNG")
