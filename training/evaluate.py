"""Accuracy, calibration and risk-coverage of a network, from its probabilities on labelled images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.calibrate import negative_log_likelihood
from training.whole import Heads, split_heads

if TYPE_CHECKING:
    import keras

REJECTED = (0.005, 0.01, 0.02, 0.05, 0.1)  # shares of the images that a site may reject to keying
ERRORS = (0.01, 0.005, 0.002, 0.001)  # target error rates of the accepted digits
DEFAULT_ERROR = 0.005  # target error rate of the service for callers that name none
FIELD_ERRORS = (0.05, 0.02, 0.01, 0.005)  # target error rates of the accepted fields
FIELD_LENGTHS = range(2, 11)  # digits
Z = 1.959964  # 97.5 % point of the normal distribution, for intervals of 95 %


@dataclass(frozen=True)
class Evaluation:
    """Results on labelled images.

    An answer is accepted if its confidence, the largest probability, reaches a threshold. Images of equal confidence are
    accepted or rejected together.

    Attributes:
        images: number of images.
        accuracy: share of correct answers.
        interval: 95 % Wilson score interval of `accuracy`.
        negative_log_likelihood: mean of -log p(true digit), nats.
        calibration_error: expected calibration error: mean gap between confidence and accuracy, over 15 equal bands.
        confusion: number of images by true digit (row) and predicted digit (column), 10 x 10.
        recall: by digit, the share of its images that are predicted as this digit; None for a digit without images.
        precision: by digit, the share of correct answers among the images predicted as this digit; None if there are no
            such images.
        risk_coverage_area: area under the risk-coverage curve (AURC): mean, over the images, of the error rate among all
            images that are at least as confident.
        error_at_reject: error rate of the accepted images, by the share of images rejected. If equal confidences do not
            allow exactly this share, the largest possible smaller share is rejected.
        reject_at_error: smallest share of images to reject, by the error rate wanted among the accepted; 1 if only
            rejecting all images would do.
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
    """The effect of a threshold.

    Attributes:
        coverage: share of the images that are accepted.
        errors: number of wrong answers among them.
        error: share of wrong answers among them; None if no image is accepted.
    """

    coverage: float
    errors: int
    error: float | None


def evaluate(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Evaluates `probabilities`, (N, 10), against the true digits `labels`, (N,)."""
    count = len(labels)
    _, correct = score(probabilities, labels)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    coverages, risks = risk_coverage(probabilities, labels)
    return Evaluation(
        images=count,
        accuracy=float(correct.mean()),
        interval=wilson_interval(int(correct.sum()), count),
        negative_log_likelihood=negative_log_likelihood(probabilities, labels),
        calibration_error=_calibration_error(probabilities, labels),
        confusion=confusion.tolist(),
        recall=_shares(confusion.diagonal(), confusion.sum(axis=1)),
        precision=_shares(confusion.diagonal(), confusion.sum(axis=0)),
        risk_coverage_area=float(np.sum(risks * np.diff(coverages, prepend=0))),
        error_at_reject={str(share): _error_at_reject(coverages, risks, share) for share in REJECTED},
        reject_at_error={str(error): _reject_at_error(coverages, risks, error) for error in ERRORS},
    )


def predict_logits(network: "keras.Model", images: np.ndarray) -> np.ndarray:
    """Runs a Keras network on `images`, (N, 28, 28) uint8, and returns the logits of the digits, (N, 10) float32."""
    return predict_heads(network, images)[0]


def predict_heads(network: "keras.Model", images: np.ndarray) -> Heads:
    """Runs a Keras network on `images`, (N, 28, 28) uint8."""
    return split_heads(network.predict(images[..., None].astype(np.float32), batch_size=500, verbose=0))


def score(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the confidence of each answer, (N,) float32 like the ONNX file's output, and its correctness, (N,) bool."""
    return probabilities.max(axis=1).astype(np.float32), probabilities.argmax(axis=1) == labels


def score_fields(confidence: np.ndarray, correct: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores fields, each made of `length` consecutive images; left-over images are ignored.

    The confidence of a field is the product of its digits' confidences, as if the images were independent.

    Args:
        confidence: (N,) confidence of each digit.
        correct: (N,) bool, True where the digit is correct.
        length: digits per field.

    Returns:
        Confidence of each field, (N // length,) float64, and True where all of its digits are correct, (N // length,) bool.
    """
    used = len(correct) // length * length
    fields = (-1, length)
    products = confidence[:used].astype(np.float64).reshape(fields).prod(axis=1)
    return products, np.logical_and.reduce(correct[:used].reshape(fields), axis=1)


def accept(confidence: np.ndarray, correct: np.ndarray, threshold: float) -> Accepted:
    """Counts the accepted answers at a threshold.

    Args:
        confidence: (N,) confidence of each answer.
        correct: (N,) bool, True where the answer is correct.
        threshold: the lowest confidence that is accepted.
    """
    accepted = confidence >= np.float64(threshold)  # NumPy would round a Python float to float32 before it compares
    answers, errors = int(accepted.sum()), int((accepted & ~correct).sum())
    return Accepted(answers / len(correct), errors, errors / answers if answers else None)


def counts_above(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, for each distinct confidence in descending order, the images that reach it and the errors among them.

    Args:
        confidence: (N,) float.
        correct: (N,) bool.

    Returns:
        Three arrays of equal length: confidences, image counts, error counts.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    last = np.flatnonzero(np.append(sorted_confidence[1:] != sorted_confidence[:-1], True))  # of each run of equal values
    return sorted_confidence[last], last + 1, np.cumsum(~correct[order])[last]


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the risk-coverage curve: the error rate of the accepted answers against their share.

    The area under the curve is the AURC of Geifman, Uziel & El-Yaniv 2019, Bias-Reduced Uncertainty Estimation for Deep
    Neural Classifiers, arXiv 1805.08206. Each risk is weighted by the images that are newly accepted.

    Returns:
        Coverages, ascending to 1, and the error rate at each; one point per distinct confidence.
    """
    _, accepted, errors = counts_above(*score(probabilities, labels))
    return accepted / len(labels), errors / accepted


def reliability(probabilities: np.ndarray, labels: np.ndarray, bands: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares confidence with accuracy in equal bands of confidence from 0 to 1.

    Returns:
        Per band: number of images, mean confidence, accuracy; the latter two are NaN in an empty band.
    """
    confidence, correct = score(probabilities, labels)
    band = np.minimum((confidence * bands).astype(int), bands - 1)
    count = np.bincount(band, minlength=bands)
    sums = [np.bincount(band, weights=values, minlength=bands) for values in (confidence, correct)]
    mean_confidence, accuracy = (np.divide(total, count, out=np.full(bands, np.nan), where=count > 0) for total in sums)
    return count, mean_confidence, accuracy


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion, which is also accurate near 0 and 1.

    Source: E. B. Wilson 1927, Journal of the American Statistical Association 22, 209-212.
    """
    share = successes / trials
    centre = share + Z * Z / (2 * trials)
    spread = Z * (share * (1 - share) / trials + Z * Z / (4 * trials * trials)) ** 0.5
    scale = 1 + Z * Z / trials
    return (centre - spread) / scale, (centre + spread) / scale


def _calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the expected calibration error. Source: Guo et al. 2017, arXiv 1706.04599, equation 3."""
    count, confidence, accuracy = reliability(probabilities, labels)
    return float(np.nansum(count * np.abs(confidence - accuracy)) / len(labels))


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]


def _error_at_reject(coverages: np.ndarray, risks: np.ndarray, share: float) -> float:
    return float(risks[np.searchsorted(coverages, 1 - share - 1e-9)])  # 1e-9: in floating point, 1 - 0.1 exceeds 0.9


def _reject_at_error(coverages: np.ndarray, risks: np.ndarray, error: float) -> float:
    return 1 - float(max(coverages[risks <= error], default=0.0))
