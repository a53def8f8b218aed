"""Decisions about answers, and the certified thresholds that recognition/policy.py decides by."""

import enum
from dataclasses import dataclass


class Decision(enum.IntEnum):
    """Decision about an answer, numbered as in digits.v1.Decision."""

    UNSPECIFIED = 0  # a client's value for a decision that its version doesn't know
    ACCEPT = 1
    REJECT_LOW_CONFIDENCE = 2
    REJECT_INVALID_IMAGE = 3
    REJECT_NOT_CERTIFIED = 4
    REJECT_NOT_IN_LEXICON = 5
    REJECT_NO_DIGIT = 6

    @property
    def label(self) -> str:
        """Label in the metrics."""
        return self.name.lower().removeprefix("reject_")


@dataclass(frozen=True)
class Threshold:
    """Threshold that the training has certified for a model.

    Attributes:
        target_error_rate: upper bound on the share of wrong answers among the accepted, between 0 and 1.
        confidence: lowest confidence that is accepted, from 0 to 1.
    """

    target_error_rate: float
    confidence: float
