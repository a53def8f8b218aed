"""Accept or reject: what becomes of an answer, by the share of errors that the operator will bear."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass


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


# As plain numbers, which cost a decision a third of what the names do.
_ACCEPT, _LOW_CONFIDENCE = int(Decision.ACCEPT), int(Decision.REJECT_LOW_CONFIDENCE)
_INVALID_IMAGE, _NOT_CERTIFIED = int(Decision.REJECT_INVALID_IMAGE), int(Decision.REJECT_NOT_CERTIFIED)


@dataclass(frozen=True)
class Threshold:
    """What a model's training has certified.

    Attributes:
        target_error_rate: the share of wrong answers among those accepted that it holds to.
        confidence: the least that is accepted.
    """

    target_error_rate: float
    confidence: float


def choose(certified: Sequence[Threshold], target_error_rate: float) -> Threshold | None:
    """The threshold for the largest error rate that is no larger than the one asked for; None without one."""
    return next((one for one in certified if one.target_error_rate <= target_error_rate), None)


def decide(confidences: Sequence[float], valid: Sequence[bool], threshold: Threshold | None) -> bytes:
    """What becomes of n answers.

    Args:
        confidences: in each.
        valid: whether there was a digit to be read.
        threshold: what is accepted; None accepts nothing.

    Returns:
        A Decision each.
    """
    if threshold is None:
        return bytes([_NOT_CERTIFIED if sound else _INVALID_IMAGE for sound in valid])
    least = threshold.confidence
    return bytes(
        [
            (_ACCEPT if confidence >= least else _LOW_CONFIDENCE) if sound else _INVALID_IMAGE
            for confidence, sound in zip(confidences, valid, strict=True)
        ]
    )
