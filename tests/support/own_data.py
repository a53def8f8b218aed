"""Labelled images in the forms that `digits-train --data` takes."""

import gzip
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PARTS = {"train": "train", "test": "t10k"}


def idx(array: NDArray[np.uint8]) -> bytes:
    """Returns an array as the content of an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8], prefix: str = "train") -> None:
    """Writes images and labels as MNIST's makers named them, compressed; `prefix` precedes "-images"."""
    folder.mkdir(exist_ok=True)
    for what, array, dimensions in (("images", images, 3), ("labels", labels, 1)):
        (folder / f"{prefix}-{what}-idx{dimensions}-ubyte.gz").write_bytes(gzip.compress(idx(array), 1))


def write_pictures(
    folder: Path, images: Iterable[NDArray[np.uint8]], classes: Iterable[object], writers: Iterable[str] | None = None
) -> None:
    """Writes a picture per image, dark on light paper and at twice the size, into a folder per class (and writer)."""
    names = writers or ("" for _ in iter(int, 1))
    for number, (image, label, writer) in enumerate(zip(images, classes, names, strict=False)):
        file = folder / str(label) / writer / f"{number:04}.{'png' if number % 2 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        paper = np.pad(255 - image, 10, constant_values=255)
        Image.fromarray(paper.repeat(2, axis=0).repeat(2, axis=1)).save(file, quality=95)
