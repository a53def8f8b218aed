"""Selection with guaranteed risk: finds the confidence threshold above which answers can be accepted."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from training.evaluate import counts_above


@dataclass(frozen=True)
class Threshold:
    """A certified confidence threshold.

    Attributes:
        threshold: the lowest confidence that is accepted.
        coverage: share of the images it was certified on that it accepts.
    """

    threshold: float
    coverage: float


def certify(confidence: np.ndarray, correct: np.ndarray, target: float, delta: float) -> Threshold | None:
    """Finds the threshold that accepts the most images while its error is provably at most `target`.

    The guarantee: over random draws of these images, the error of the accepted images exceeds `target` in at most `delta`
    of the draws. It holds for images from the same distribution and for no others. Three assumptions limit it:

    - Images are drawn independently, although several may come from one writer.
    - Errors do not get rarer as confidence falls.
    - A temperature fitted on the same images is one more parameter, which the bound does not count.

    The method is a binary search over the distinct confidences; images of equal confidence are accepted together. After a
    threshold that passes it tries a lower one, after one that fails a higher one. A threshold passes if the exact binomial
    upper bound of its error (Clopper & Pearson 1934, Biometrika 26, 404-413), at delta / tests, is at most `target`.

    The bound is not monotone in the threshold: a few images without an error prove little. The search therefore skips
    thresholds that accept too few images to pass even without an error. Their number does not depend on `correct`.

    Args:
        confidence: (N,) calibrated confidence in the predicted digit, for images that the network was not trained on.
        correct: (N,) bool, True where the predicted digit is the true one.
        target: largest error rate wanted among the accepted images.
        delta: probability that the guarantee fails.

    Returns:
        The threshold, or None if no threshold passes.

    Source: Geifman & El-Yaniv 2017, Selective Classification for Deep Neural Networks, arXiv 1705.08500, algorithm 1.
    """
    if not len(confidence):
        return None
    thresholds, accepted, errors = counts_above(confidence, correct)
    tests = len(confidence).bit_length()  # upper bound on the search's steps; the paper's ceil(log2 N), or one more
    enough = math.log(delta / tests) / math.log(1 - target)  # fewer accepted images can't pass even without an error
    low, high = int(np.searchsorted(accepted, enough)), len(accepted) - 1
    found = None
    while low <= high:
        middle = (low + high) // 2
        if _upper_bound(int(errors[middle]), int(accepted[middle]), delta / tests) <= target:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return None if found is None else Threshold(float(thresholds[found]), float(accepted[found] / len(confidence)))


def _upper_bound(errors: int, trials: int, risk: float) -> float:
    """Returns the exact upper confidence bound of an error probability, which is too low with probability `risk`."""
    return 1.0 if errors == trials else float(betaincinv(errors + 1, trials - errors, 1 - risk))
