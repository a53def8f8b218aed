"""Framed digits to draw crops from: MNIST's test images where DIGITS_DATA names a copy, else the bundled samples, varied."""

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.samples.draw import SAMPLES


def load_digits(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws `count` digits.

    Returns:
        images: (count, 28, 28) uint8, 0 paper to 255 ink.
        labels: (count,) uint8, 0 to 9 in turn.
    """
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    named = os.environ.get("DIGITS_DATA")
    if named:
        with np.load(Path(named)) as arrays:
            pictures, truths = arrays["x_test"], arrays["y_test"]
        return np.stack([pictures[random.choice(np.flatnonzero(truths == label))] for label in labels]), labels
    samples = [255 - np.asarray(Image.open(SAMPLES / f"{digit}.png")) for digit in range(10)]
    return np.stack([_vary(samples[label], random) for label in labels]), labels


def _vary(image: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Turns, slants and stretches a digit a little."""
    turn, slant, wide = random.normal(0, 0.08), random.normal(0, 0.12), random.uniform(0.8, 1.05)
    warp = np.array([[wide * np.cos(turn), slant - np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = np.array([13.5, 13.5])
    varied: NDArray[np.uint8] = cv2.warpAffine(
        image, np.column_stack([warp, middle - warp @ middle]), (28, 28), flags=cv2.INTER_LINEAR
    )
    return varied
