"""A sketch of the images that a version was trained on, by which mail that contains some of them is recognised.

The sketch holds the smallest checksums of the images. It is a uniform sample, and depends neither on the order of the images
nor on what else lies beside them: a folder that grew by one picture, or a part of a file, gives nearly the same sketch. Mail
with a share p of the training images has about `SIZE` p of the sketch.

Source: Broder 1997, On the resemblance and containment of documents, Compression and Complexity of Sequences, 21-29.
"""

import hashlib
from collections.abc import Collection

import numpy as np

SIZE = 1000  # checksums
_DIGITS = 12  # hexadecimal, of a checksum: 100,000 other images share one in fewer than 1 in a million sketches


def sketch(images: np.ndarray) -> list[str]:
    """Returns the `SIZE` smallest checksums of images, (N, 28, 28) uint8, in ascending order; all of fewer images."""
    return sorted(_checksums(images))[:SIZE]


def found_in(images: np.ndarray, sketched: Collection[str]) -> int:
    """Returns the number of different images, of (N, 28, 28) uint8, whose checksum is in a sketch."""
    return len(_checksums(images) & set(sketched))


def _checksums(images: np.ndarray) -> set[str]:
    return {hashlib.sha256(image.tobytes()).hexdigest()[:_DIGITS] for image in images}
