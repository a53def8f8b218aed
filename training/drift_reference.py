"""Statistics of the images that a version was certified on, from which its servers detect drift."""

import numpy as np

from serving.imaging.framing import measure


def drift_reference(images: np.ndarray, probabilities: np.ndarray) -> dict[str, list[float]]:
    """Describes images and the digits recognized in them.

    Args:
        images: (N, 28, 28) uint8; images without ink are ignored.
        probabilities: (N, 10), one row per image.

    Returns:
        "digit": the share of each recognized digit. "ink", "row" and "column": percentiles 0 to 100 of the share of ink
        pixels in an image, and of the row and column of its centre of mass.
    """
    inked = images.any(axis=(1, 2))
    ink, centres = measure(images[inked])
    digits = np.bincount(probabilities[inked].argmax(axis=1), minlength=10) / inked.sum()
    measured = {"ink": ink, "row": centres[:, 0], "column": centres[:, 1]}
    percentiles = {name: np.percentile(values, range(101)).round(4).tolist() for name, values in measured.items()}
    return {"digit": digits.round(6).tolist(), **percentiles}
