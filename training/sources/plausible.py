"""Refuses arrays that are not images and labels of digits, and says what to change."""

from collections.abc import Sequence

import numpy as np

from training.dataset import DatasetError, Examples

MOST_IMAGES = 1_000_000  # of one part: 784 MB
BRIGHTEST = 64  # an image set without a brighter pixel is not in grey levels 0 to 255
MOST_INVERTED = 0.01  # share of images that are mostly ink; a thick 8 may be

_CHUNK = 10_000
_FROM_INTEGERS = "convert values from 0 to 255 with `x.astype('uint8')`"
_CONVERSIONS = {  # by the kind of a type; grey levels of 0 to 255 must not be multiplied, which would wrap them
    "b": "convert with `x.astype('uint8') * 255`",
    "f": "convert values from 0 to 255 with `np.round(x).astype('uint8')`, and values from 0 to 1 with "
    "`np.round(255 * x).astype('uint8')`",
    "i": _FROM_INTEGERS,
    "u": _FROM_INTEGERS,
}
_FROM_ANYTHING = "convert numbers with `x.astype(float)`, and leave out what is no number"


def require_shape(name: str, shape: Sequence[int], dtype: np.dtype | str) -> None:
    """Checks an image array by its header alone, before any memory is reserved for its content.

    Args:
        name: name of the array or file, for messages.
        shape: its shape; (N, 28, 28) is expected.
        dtype: its type; uint8 is expected.

    Raises:
        DatasetError: it is not such an array; the message has the remedy.
    """
    stated = f"{name} is {dtype} {tuple(shape)}"
    if len(shape) in (2, 4) and int(np.prod(shape[1:])) == 784:
        raise DatasetError(f"{stated}, expected uint8 (N, 28, 28): reshape it with `x.reshape(-1, 28, 28)`")
    if len(shape) != 3 or tuple(shape[1:]) != (28, 28):
        raise DatasetError(
            f"{stated}, expected uint8 (N, 28, 28). The network reads digits framed as MNIST frames them; give other sizes "
            "as a folder of pictures, which are framed when they are read"
        )
    if np.dtype(dtype) != np.uint8:
        remedy = _CONVERSIONS.get(np.dtype(dtype).kind, _FROM_ANYTHING)
        raise DatasetError(f"{stated}, expected uint8 grey levels, 0 paper to 255 ink: {remedy}")
    require_count(name, shape[0])


def require_label_shape(name: str, shape: Sequence[int], dtype: np.dtype | str) -> None:
    """Checks a label array by its header alone. Raises DatasetError unless it is integers (N,)."""
    if len(shape) == 2 and shape[1] == 10:
        raise DatasetError(f"{name} is {dtype} {tuple(shape)}, expected (N,) digits: use `y.argmax(axis=1)`")
    if len(shape) != 1 or np.dtype(dtype).kind not in "iu":
        raise DatasetError(f"{name} is {dtype} {tuple(shape)}, expected integers (N,), one digit per image")
    require_count(name, shape[0])


def require_count(name: str, count: int) -> None:
    """Raises DatasetError for no image, or for too many."""
    if not 1 <= count <= MOST_IMAGES:
        raise DatasetError(f"{name} has {count:,} entries, expected 1 to {MOST_IMAGES:,}")


def require_digits(name: str, images: np.ndarray, labels: np.ndarray) -> Examples:
    """Checks labels and grey levels, and returns them as examples.

    Args:
        name: name of this part of the data, for messages.
        images: (N, 28, 28) uint8.
        labels: (M,) integers of any type.

    Raises:
        DatasetError: the numbers differ, a label is no digit, the grey levels do not reach 64, an image is blank, or more
            than one image in a hundred is mostly ink, so that the images are inverted.
    """
    if len(images) != len(labels):
        raise DatasetError(f"{name} has {len(images):,} images but {len(labels):,} labels")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 9:
        raise DatasetError(f"{name} has labels from {low} to {high}, expected the digits 0 to 9. {_label_remedy(low, high)}")
    brightest = int(images.max())
    if 0 < brightest < BRIGHTEST:
        raise DatasetError(
            f"{name}: no pixel is above {brightest}, expected grey levels 0 paper to 255 ink: multiply by {255 // brightest}"
        )
    means = np.concatenate([images[start : start + _CHUNK].mean(axis=(1, 2)) for start in range(0, len(images), _CHUNK)])
    inverted = int((means > 127).sum())
    if inverted > MOST_INVERTED * len(images):
        raise DatasetError(
            f"{name}: {inverted:,} of {len(images):,} images are mostly bright, but paper must be 0 and ink 255: "
            "invert them with `255 - x`"
        )
    blank = np.flatnonzero(means == 0)
    if len(blank):
        raise DatasetError(
            f"{name}: {len(blank):,} images are blank, the first is number {blank[0]}; remove them and their labels"
        )
    return Examples(np.ascontiguousarray(images), labels.astype(np.uint8))


def _label_remedy(low: int, high: int) -> str:
    if (low, high) == (1, 10):
        return "If 10 stands for the digit 0, use `y % 10`; if the labels count the digits from 1, `y - 1`"
    if low < 0:
        return "Leave out images whose label is negative; if the labels count the digits from -1, use `y + 1`"
    return "Letters can't be learned: of EMNIST, take the set `digits` or `mnist`"
