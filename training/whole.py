"""The refusal of what is no digit, by a network's second head: "this is one whole digit"."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit

WHOLE_LOSS = 0.001  # share of the held-out digits that the head may refuse


class Heads(NamedTuple):
    """Answers of a network.

    Attributes:
        logits: (N, 10) float32, of the digits.
        whole: (N,) float32, probability of one whole digit; None without a second head.
    """

    logits: np.ndarray
    whole: np.ndarray | None


def split_heads(outputs: np.ndarray) -> Heads:
    """Splits the outputs of a network into its heads.

    Args:
        outputs: (N, 10) logits of the digits; with a second head, (N, 11), the last of which is its logit.
    """
    if outputs.shape[1] == 10:
        return Heads(outputs, None)
    return Heads(outputs[:, :10], expit(outputs[:, 10].astype(np.float64)).astype(np.float32))


def fix_whole_threshold(whole: np.ndarray) -> float:
    """Finds the threshold that refuses a share of `WHOLE_LOSS` of the held-out digits, or one of a thousand or fewer.

    It refuses more where several digits share the value of the last one, and fewer where this value is nearly 1: a head that
    is sure of every digit refuses none.

    The answer to an image is never accepted if its probability of one whole digit is below the threshold. The threshold is
    the value of the last refused digit, rounded up to a millionth, so that the service's rounding can't change its side.

    Confidence thresholds may be certified on the same images. The whole threshold depends on no label, and on one value
    only, which belongs to a refused image. Given this value, the images above it are independent draws from the images that
    the threshold lets through. The certificate is therefore exact for every such value.

    Args:
        whole: (N,) float32, probability of one whole digit, for held-out digits.
    """
    refused = max(1, math.floor(WHOLE_LOSS * len(whole)))
    last = float(np.partition(whole, refused - 1)[refused - 1])
    return min(1.0, (math.floor(last * 1e6) + 1) / 1e6)


def is_whole(whole: np.ndarray, threshold: float) -> np.ndarray:
    """Tests which images show one whole digit, as the service does.

    Args:
        whole: (N,) float32, probability of one whole digit.
        threshold: the lowest probability of a whole digit.

    Returns:
        (N,) bool.
    """
    kept: np.ndarray = whole >= np.float64(threshold)  # NumPy would round a Python float to float32 before it compares
    return kept
