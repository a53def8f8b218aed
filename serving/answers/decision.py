"""Accept or reject: the decision about an answer, by a threshold for the error rate that the operator accepts."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Decision(enum.IntEnum):
    """Decision about an answer, numbered as in digits.v1.Decision."""

    UNSPECIFIED = 0  # a client's value for a decision that its version doesn't know
    ACCEPT = 1
    REJECT_LOW_CONFIDENCE = 2
    REJECT_INVALID_IMAGE = 3
    REJECT_NOT_CERTIFIED = 4
    REJECT_NOT_IN_LEXICON = 5

    @property
    def label(self) -> str:
        """Label in the metrics."""
        return self.name.lower().removeprefix("reject_")


# Plain integers: a decision takes a third of the time that it takes with enum members.
_ACCEPT, _LOW_CONFIDENCE = int(Decision.ACCEPT), int(Decision.REJECT_LOW_CONFIDENCE)
_INVALID_IMAGE, _NOT_CERTIFIED = int(Decision.REJECT_INVALID_IMAGE), int(Decision.REJECT_NOT_CERTIFIED)


@dataclass(frozen=True)
class Threshold:
    """Threshold that the training has certified for a model.

    Attributes:
        target_error_rate: upper bound on the share of wrong answers among the accepted, between 0 and 1.
        confidence: lowest confidence that is accepted, from 0 to 1.
    """

    target_error_rate: float
    confidence: float


def choose(certified: Sequence[Threshold], target_error_rate: float) -> Threshold | None:
    """Returns the threshold for the largest certified error rate up to the requested one.

    Args:
        certified: thresholds, the largest error rate first.
        target_error_rate: requested error rate.

    Returns:
        The threshold; None if no error rate so low is certified.
    """
    return next((threshold for threshold in certified if threshold.target_error_rate <= target_error_rate), None)


def decide(confidences: Sequence[float], valid: Sequence[bool], threshold: Threshold | None) -> bytes:
    """Decides about n answers.

    Args:
        confidences: n confidences, from 0 to 1.
        valid: n flags, False for an image without ink or a broken crop.
        threshold: threshold to accept by; None accepts nothing.

    Returns:
        n Decisions, one byte each.
    """
    if threshold is None:
        return bytes([_NOT_CERTIFIED if is_valid else _INVALID_IMAGE for is_valid in valid])
    lowest = threshold.confidence
    return bytes(
        [
            (_ACCEPT if confidence >= lowest else _LOW_CONFIDENCE) if is_valid else _INVALID_IMAGE
            for confidence, is_valid in zip(confidences, valid, strict=True)
        ]
    )
