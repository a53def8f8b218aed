"""Makes a network's confidence mean what it says, and finds the confidence from which its answers can be trusted."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta


@dataclass(frozen=True)
class Threshold:
    """A confidence from which answers are accepted.

    Attributes:
        threshold: the least confidence that is accepted.
        coverage: share of the images it was certified on that it accepts.
    """

    threshold: float
    coverage: float


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T for which softmax(logits / T) gives `labels` the highest likelihood.

    Dividing by one number leaves every digit as it was and makes the confidences, taken together, as high as the network
    is right. Golden-section search over log T between 0.1 and 10; the likelihood has a single peak in 1 / T.

    Args:
        logits: (N, 10) float32, from images that the network was not trained on.
        labels: (N,) true digits.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(softmax(logits, np.exp(log_temperature)), labels)

    ratio = (5**0.5 - 1) / 2
    low, high = np.log(0.1), np.log(10.0)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Calibrated probabilities, (N, 10) float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the images of -log p(true digit), in nats; lower is better."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean())


def certify(confidence: np.ndarray, right: np.ndarray, target: float, delta: float) -> Threshold | None:
    """The threshold that accepts most, of those that can be shown to let through at most `target` errors.

    Over draws of these images, the threshold returned lets through more than that, of the images it accepts, in at most
    `delta` of the draws. That holds for images drawn alike and for no others, and it takes for granted that each is drawn
    by itself, although several are of one writer, and that errors get no rarer where confidence falls. A temperature fitted
    on the same images is one more number chosen by them, which the bound does not count.

    The search halves the distinct confidences, images of equal confidence being accepted together: after a threshold that
    passes it tries a lower one, after one that fails a higher one. A threshold passes when the exact binomial upper bound
    of its error (Clopper & Pearson 1934, Biometrika 26, 404-413), at delta / tests, is at most `target`. The bound is not
    monotone: of few images, none wrong says little. So thresholds which accept too few to pass even without an error are
    left out beforehand; how many that takes does not depend on what is right.

    Args:
        confidence: (N,) calibrated confidence in the digit read, of images that the network was not trained on.
        right: (N,) bool, whether that digit is the true one.
        target: largest error wanted among the accepted, as a share.
        delta: risk of being wrong about it.

    Returns:
        None where no threshold passes.

    Source: Geifman & El-Yaniv 2017, Selective Classification for Deep Neural Networks, arXiv 1705.08500, algorithm 1.
    """
    if not len(confidence):
        return None
    thresholds, accepted, errors = counts_above(confidence, right)
    tests = len(confidence).bit_length()  # the most steps that halving takes; the paper's ceil(log2 N), or one more
    enough = math.log(delta / tests) / math.log(1 - target)  # from here on no error at all would pass
    low, high = int(np.searchsorted(accepted, enough)), len(accepted) - 1
    found = None
    while low <= high:
        middle = (low + high) // 2
        if _upper_bound(int(errors[middle]), int(accepted[middle]), delta / tests) <= target:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return None if found is None else Threshold(float(thresholds[found]), float(accepted[found] / len(confidence)))


def counts_above(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct confidences from the highest down, and of each, how many images reach it and how many of them are wrong.

    Args:
        confidence: (N,) float.
        right: (N,) bool.

    Returns:
        Three arrays of one length: confidence, images, errors.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    last = np.flatnonzero(np.append(sorted_confidence[1:] != sorted_confidence[:-1], True))  # of those equally confident
    return sorted_confidence[last], last + 1, np.cumsum(~right[order])[last]


def _upper_bound(errors: int, trials: int, risk: float) -> float:
    """The least upper bound of the chance of an error which is too low in at most `risk` of the cases."""
    return 1.0 if errors == trials else float(beta.ppf(1 - risk, errors + 1, trials - errors))
