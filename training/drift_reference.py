"""What the images are like that a model is certified on, so that its servers can tell when others come."""

import numpy as np

from serving.imaging.framing import measure


def drift_reference(images: np.ndarray, probabilities: np.ndarray) -> dict[str, list[float]]:
    """What images are like, and what is read in them.

    Args:
        images: (N, 28, 28) uint8; those without ink are left out.
        probabilities: (N, 10) of each.

    Returns:
        "digit": the share of each digit in what was read; and the percentiles, 0 to 100, of "ink", the share of an image
        that is ink, and of "row" and "column", where its centre of mass is.
    """
    inked = images.any(axis=(1, 2))
    ink, centres = measure(images[inked])
    digits = np.bincount(probabilities[inked].argmax(axis=1), minlength=10) / inked.sum()
    measured = {"ink": ink, "row": centres[:, 0], "column": centres[:, 1]}
    percentiles = {name: np.percentile(values, range(101)).round(4).tolist() for name, values in measured.items()}
    return {"digit": digits.round(6).tolist(), **percentiles}
