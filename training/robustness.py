"""Measures accuracy on images unlike MNIST's: damaged test images, and digits from other sources."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from serving.imaging.framing import frame
from training.damage import DAMAGES
from training.damage.pens import reframed, spread
from training.dataset import Examples

SECOND_SOURCE = "scikit-learn's handwritten digits (UCI, 8x8, upsampled and framed as MNIST frames them)"
THICK_PEN = "test images with a thick pen (strokes a quarter of the height)"


def robustness(predict: Callable[[np.ndarray], np.ndarray], examples: Examples, seed: int) -> list[dict[str, Any]]:
    """Measures the accuracy on `examples` undamaged, in the first row, and under each kind of damage.

    Args:
        predict: returns probabilities, (N, 10), for images, (N, 28, 28) uint8.
        examples: images framed as MNIST frames them.
        seed: of directions, positions and noise. Each row draws independently.

    Returns:
        One row per kind and amount of damage, with `damage`, `amount`, `accuracy` and `images`.
    """
    rows = []
    for number, (damage, amount, apply) in enumerate(DAMAGES):
        damaged = apply(examples.images.astype(np.float32), np.random.default_rng([seed, number]))
        images = np.clip(np.rint(damaged), 0, 255).astype(np.uint8)
        accuracy = float((predict(images).argmax(axis=1) == examples.labels).mean())
        rows.append({"damage": damage, "amount": amount, "accuracy": accuracy, "images": len(examples)})
    return rows


def mean_accuracy(rows: Sequence[dict[str, Any]], kinds: Sequence[str] | None = None) -> float:
    """Returns the mean accuracy over kinds of damage, each of which is the mean over its amounts.

    Args:
        rows: of `robustness`.
        kinds: names of the kinds to count; None counts all.
    """
    amounts: dict[str, list[float]] = {}
    for row in rows:
        if row["damage"] != "none" and (kinds is None or row["damage"] in kinds):
            amounts.setdefault(row["damage"], []).append(row["accuracy"])
    return float(np.mean([np.mean(accuracies) for accuracies in amounts.values()]))


def sources(test: Examples) -> list[tuple[str, Examples]]:
    """Returns digits that are not MNIST's, and MNIST's written with another pen, each with its name.

    Args:
        test: the test images, from which the thick digits are made.
    """
    thick = reframed(spread(test.images.astype(np.float32), 1.25))
    return [(SECOND_SOURCE, second_source()), (THICK_PEN, Examples(thick, test.labels))]


def second_source() -> Examples:
    """Returns scikit-learn's 1,797 handwritten digits, by 13 writers unknown to MNIST, framed as MNIST frames digits.

    The originals hold the ink share, 0 to 16, of 8x8 cells of a 32x32 bitmap. A cubic spline through the shares, at four
    times the resolution, approximates this bitmap. Values of at least a quarter keep their grey level and the rest becomes
    paper: binarisation would break thin strokes and close small loops.

    Source: E. Alpaydin & C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    doi 10.24432/C50P49, CC BY 4.0; its test part, which sklearn.datasets.load_digits includes.
    """
    from sklearn.datasets import load_digits  # only here: loading scikit-learn takes a second

    digits = load_digits()
    shares = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1)))  # a margin of paper, for strokes at the edge
    spline = ndimage.zoom(np.eye(10), (4, 1), order=3, mode="grid-constant", grid_mode=True)  # (40, 10) weights
    grey = spline @ shares @ spline.T
    ink = np.where(grey < 0.25, 0, np.minimum(grey, 1))
    return Examples(np.stack([frame(image) for image in ink]), digits.target.astype(np.uint8))
