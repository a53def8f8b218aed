"""Accept or reject: what becomes of an answer, by the share of errors that the operator will bear."""

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Decision(enum.IntEnum):
    """What is to become of an answer; the numbers are those of digits.v1.Decision."""

    UNSPECIFIED = 0  # what a client makes of a decision that it doesn't know
    ACCEPT = 1
    REJECT_LOW_CONFIDENCE = 2
    REJECT_INVALID_IMAGE = 3
    REJECT_NOT_CERTIFIED = 4
    REJECT_NOT_IN_LEXICON = 5

    @property
    def label(self) -> str:
        """As the metrics name it."""
        return self.name.lower().removeprefix("reject_")


@dataclass(frozen=True)
class Threshold:
    """What a model's training has certified.

    Attributes:
        target_error_rate: the share of wrong answers among those accepted that it holds to.
        confidence: the least that is accepted.
    """

    target_error_rate: float
    confidence: float


def thresholds(text: str) -> tuple[Threshold, ...]:
    """Those that a model's metadata state, the one for the largest error rate first.

    Args:
        text: {error rate: {"threshold": confidence, ...}, ...} as JSON.

    Raises:
        ValueError: it is not.
    """
    return _thresholds(json.loads(text))


def field_thresholds(text: str) -> dict[int, tuple[Threshold, ...]]:
    """Likewise for fields, by their length.

    Args:
        text: {length: {error rate: {"threshold": confidence, ...}, ...}, ...} as JSON.

    Raises:
        ValueError: it is not.
    """
    stated = json.loads(text)
    if not isinstance(stated, dict):
        raise ValueError(f"not lengths with their thresholds: {text}")
    return {int(length): _thresholds(found) for length, found in stated.items()}


def _thresholds(stated: Any) -> tuple[Threshold, ...]:
    try:
        found = [Threshold(float(rate), float(entry["threshold"])) for rate, entry in stated.items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not error rates with their thresholds: {stated}") from error
    if not all(0 < one.target_error_rate < 1 and 0 <= one.confidence <= 1 for one in found):
        raise ValueError(f"not shares from 0 to 1: {stated}")
    return tuple(sorted(found, key=lambda one: -one.target_error_rate))


def choose(certified: Sequence[Threshold], target_error_rate: float) -> Threshold | None:
    """The threshold for the largest error rate that is no larger than the one asked for; None without one."""
    return next((one for one in certified if one.target_error_rate <= target_error_rate), None)


def decide(
    confidences: NDArray[np.floating[Any]], valid: NDArray[np.bool_], threshold: Threshold | None
) -> NDArray[np.uint8]:
    """What becomes of n answers.

    Args:
        confidences: (n,).
        valid: (n,), whether there was a digit to be read.
        threshold: what is accepted; None accepts nothing.

    Returns:
        (n,) uint8, a Decision each.
    """
    if threshold is None:
        decisions = np.full(len(confidences), np.uint8(Decision.REJECT_NOT_CERTIFIED))
    else:
        accepted = confidences >= threshold.confidence
        decisions = np.where(accepted, np.uint8(Decision.ACCEPT), np.uint8(Decision.REJECT_LOW_CONFIDENCE))
    return np.where(valid, decisions, np.uint8(Decision.REJECT_INVALID_IMAGE))
