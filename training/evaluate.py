"""How well a network reads, from its probabilities on images whose digits are known."""

from dataclasses import dataclass

import numpy as np

from training.calibrate import counts_above, negative_log_likelihood

REJECTED = (0.005, 0.01, 0.02, 0.05, 0.1)  # shares of the images that a site may send to keying
ERRORS = (0.01, 0.005, 0.002, 0.001)  # shares of wrong answers that it may let through
FIELD_ERRORS = (0.05, 0.02, 0.01, 0.005)  # likewise, of fields
FIELD_LENGTHS = range(2, 11)  # digits
Z = 1.959964  # 97.5 % point of the normal distribution, for intervals of 95 %


@dataclass(frozen=True)
class Evaluation:
    """What an operator may expect of images like the ones judged.

    An answer is accepted when its confidence, the greatest probability, reaches a threshold; images of equal confidence are
    accepted or rejected together.

    Attributes:
        images: how many were judged.
        accuracy: share read right.
        interval: 95 % Wilson score interval of `accuracy`.
        negative_log_likelihood: mean of -log p(true digit), nats.
        calibration_error: expected calibration error: mean gap between confidence and accuracy, over 15 equal bands.
        confusion: images by true digit (row) and digit read (column), 10 x 10.
        recall: of the images of each digit, share read as it; None where there are none.
        precision: of the images read as each digit, share that are it; None where none is.
        risk_coverage_area: mean over the images of the error among those at least as confident (AURC).
        error_at_reject: error among the accepted, by the share of images rejected; where equal confidences do not let
            exactly that many go, the most that are not more.
        reject_at_error: least share of images to reject, by the error wanted among the accepted; 1 where only rejecting
            them all would do.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    negative_log_likelihood: float
    calibration_error: float
    confusion: list[list[int]]
    recall: list[float | None]
    precision: list[float | None]
    risk_coverage_area: float
    error_at_reject: dict[str, float]
    reject_at_error: dict[str, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"accuracy {self.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) on {self.images:,} images"


@dataclass(frozen=True)
class Accepted:
    """What a threshold lets through.

    Attributes:
        coverage: share of the images that are accepted.
        errors: how many of them are wrong.
        error: share of them that is wrong; None where none is accepted.
    """

    coverage: float
    errors: int
    error: float | None


def evaluate(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Judges `probabilities`, (N, 10), against the true digits `labels`, (N,)."""
    count = len(labels)
    _, right = judge(probabilities, labels)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    coverages, risks = risk_coverage(probabilities, labels)
    return Evaluation(
        images=count,
        accuracy=float(right.mean()),
        interval=wilson_interval(int(right.sum()), count),
        negative_log_likelihood=negative_log_likelihood(probabilities, labels),
        calibration_error=_calibration_error(probabilities, labels),
        confusion=confusion.tolist(),
        recall=_shares(confusion.diagonal(), confusion.sum(axis=1)),
        precision=_shares(confusion.diagonal(), confusion.sum(axis=0)),
        risk_coverage_area=float(np.sum(risks * np.diff(coverages, prepend=0))),
        error_at_reject={str(share): _error_at_reject(coverages, risks, share) for share in REJECTED},
        reject_at_error={str(error): _reject_at_error(coverages, risks, error) for error in ERRORS},
    )


def judge(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How sure each answer is, (N,) float32 as the ONNX file gives it, and whether it is right, (N,) bool."""
    return probabilities.max(axis=1).astype(np.float32), probabilities.argmax(axis=1) == labels


def accept(confidence: np.ndarray, right: np.ndarray, threshold: float) -> Accepted:
    """Counts what is let through when answers with a confidence of `threshold` or more are accepted.

    Args:
        confidence: (N,) of each answer.
        right: (N,) bool, whether it is.
        threshold: the least that is accepted.
    """
    accepted = confidence >= threshold
    answers, errors = int(accepted.sum()), int((accepted & ~right).sum())
    return Accepted(answers / len(right), errors, errors / answers if answers else None)


def judge_fields(probabilities: np.ndarray, labels: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Likewise for fields, each of so many images that follow one another; a rest is left out.

    A field's confidence is the product of its digits', as if no image had a say in what another shows.

    Returns:
        Confidence in the field read, (N // length,) float64, and whether all of it is right, (N // length,) bool.
    """
    confidence, right = judge(probabilities, labels)
    whole = len(right) // length * length
    fields = (-1, length)
    products = confidence[:whole].astype(np.float64).reshape(fields).prod(axis=1)
    return products, np.logical_and.reduce(right[:whole].reshape(fields), axis=1)


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The risk-coverage curve: what share of the answers is wrong when only the surest are accepted.

    The area under it, each risk weighted by the images that come in with it, is the AURC of Geifman, Uziel & El-Yaniv 2019,
    Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, arXiv 1805.08206.

    Returns:
        coverages, ascending to 1, and the error among the accepted at each; one point for each distinct confidence.
    """
    _, accepted, errors = counts_above(*judge(probabilities, labels))
    return accepted / len(labels), errors / accepted


def reliability(probabilities: np.ndarray, labels: np.ndarray, bands: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What confidence was worth, in equal bands of it from 0 to 1.

    Returns:
        Per band: count of images, their mean confidence, their accuracy; the latter two are nan in an empty band.
    """
    confidence, right = judge(probabilities, labels)
    band = np.minimum((confidence * bands).astype(int), bands - 1)
    count = np.bincount(band, minlength=bands)
    sums = [np.bincount(band, weights=values, minlength=bands) for values in (confidence, right)]
    mean_confidence, accuracy = (np.divide(total, count, out=np.full(bands, np.nan), where=count > 0) for total in sums)
    return count, mean_confidence, accuracy


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, good near 0 and 1 too. Source: E. B. Wilson 1927, JASA 22, 209-212."""
    share = successes / trials
    centre = share + Z * Z / (2 * trials)
    spread = Z * (share * (1 - share) / trials + Z * Z / (4 * trials * trials)) ** 0.5
    scale = 1 + Z * Z / trials
    return (centre - spread) / scale, (centre + spread) / scale


def _calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error. Source: Guo et al. 2017, arXiv 1706.04599, equation 3."""
    count, confidence, accuracy = reliability(probabilities, labels)
    return float(np.nansum(count * np.abs(confidence - accuracy)) / len(labels))


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]


def _error_at_reject(coverages: np.ndarray, risks: np.ndarray, share: float) -> float:
    return float(risks[np.searchsorted(coverages, 1 - share - 1e-9)])  # 1e-9: 1 - 0.1 is a little more than 0.9


def _reject_at_error(coverages: np.ndarray, risks: np.ndarray, error: float) -> float:
    return 1 - float(max(coverages[risks <= error], default=0.0))
