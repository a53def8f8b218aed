"""What is captured, row by row: images that were rejected or marked for audit, and truths about them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.decision import Decision
from serving.errors import CannotStart
from serving.recognition_id import Recognized


class CaptureError(CannotStart):
    """Images can't be captured as they are to be; the message says why."""


class NotStored(Exception):
    """The database has not taken it; the message says why."""


@dataclass(frozen=True)
class CapturedImage:
    """An image that was rejected or marked for audit.

    Attributes:
        answer: the nonce of the answer's recognition id, 16 hexadecimal digits.
        place: of the image in the answer, from 0.
        field_length: digits of the field that it is of; 0 for a digit by itself.
        model: that answered.
        version: of it.
        digit: that was read.
        confidence: in that; of a field, in all of its digits.
        decision: in a word, as metrics have it.
        audited: whether it was marked for audit.
        image: 784 bytes, as the network saw it.
    """

    answer: str
    place: int
    field_length: int
    model: str
    version: str
    digit: int
    confidence: float
    decision: str
    audited: bool
    image: bytes


@dataclass(frozen=True)
class CapturedTruth:
    """What somebody said of an answer with such images; the attributes are as in CapturedImage, or as in truths.Truth."""

    answer: str
    place: int
    source: str
    value: str


def worth_learning(decisions: NDArray[np.uint8], audited: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a person will look at an image and find a digit: it was rejected although there is ink, or marked for audit.

    Args:
        decisions: (n,), a Decision each.
        audited: (n,), whether it was marked.
    """
    rejected = (decisions != Decision.ACCEPT) & (decisions != Decision.REJECT_INVALID_IMAGE)
    worth: NDArray[np.bool_] = audited | rejected
    return worth


def images_of(answer: Recognized, images: NDArray[np.uint8]) -> list[CapturedImage]:
    """Those of an answer's `images`, (n, 784) uint8, that are worth it; of a field all or none."""
    worth = worth_learning(answer.decisions, answer.audited)
    every = range(len(images))
    decided = [0] * len(images) if answer.of_field else every  # where the answer says what became of each
    return [
        CapturedImage(
            answer=answer.nonce.hex(),
            place=place,
            field_length=len(images) if answer.of_field else 0,
            model=answer.model,
            version=answer.version,
            digit=int(answer.digits[place]),
            confidence=float(answer.confidences[decided[place]]),
            decision=Decision(int(answer.decisions[decided[place]])).label,
            audited=bool(answer.audited[decided[place]]),
            image=images[place].tobytes(),
        )
        for place in every
        if worth[decided[place]]
    ]


def truth_of(answer: Recognized, place: int, source: str, value: str) -> CapturedTruth | None:
    """What was said of the digit at a place of an answer, or at 0 of a field; None where no image is captured."""
    there = slice(place, place + 1)
    if not worth_learning(answer.decisions[there], answer.audited[there]).any():
        return None
    return CapturedTruth(answer.nonce.hex(), place, source, value)
