"""How well a network reads, from its probabilities on images whose digits are known."""

from dataclasses import dataclass

import numpy as np

from training.calibrate import negative_log_likelihood


@dataclass(frozen=True)
class Evaluation:
    """What an operator may expect of images like the ones judged.

    Attributes:
        images: how many were judged.
        accuracy: share read right.
        interval: 95 % Wilson score interval of `accuracy`.
        negative_log_likelihood: mean of -log p(true digit), nats.
        calibration_error: expected calibration error: mean gap between confidence and accuracy, over 15 equal bands.
        confusion: images by true digit (row) and digit read (column), 10 x 10.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    negative_log_likelihood: float
    calibration_error: float
    confusion: list[list[int]]

    def __str__(self) -> str:
        low, high = self.interval
        return f"accuracy {self.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) on {self.images:,} images"


def evaluate(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Judges `probabilities`, (N, 10), against the true digits `labels`, (N,)."""
    count = len(labels)
    digits, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = digits == labels
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, digits), 1)
    return Evaluation(
        images=count,
        accuracy=float(right.mean()),
        interval=wilson_interval(int(right.sum()), count),
        negative_log_likelihood=negative_log_likelihood(probabilities, labels),
        calibration_error=_calibration_error(confidence, right),
        confusion=confusion.tolist(),
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, good near 0 and 1 too. Source: E. B. Wilson 1927, JASA 22, 209-212."""
    z = 1.959964  # 97.5 % point of the normal distribution
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    return (centre - spread) / scale, (centre + spread) / scale


def _calibration_error(confidence: np.ndarray, right: np.ndarray, bands: int = 15) -> float:
    """Expected calibration error. Source: Guo et al. 2017, arXiv 1706.04599, equation 3."""
    band = np.minimum((confidence * bands).astype(int), bands - 1)
    gaps = np.bincount(band, weights=confidence - right, minlength=bands)
    return float(np.abs(gaps).sum() / len(right))
