"""What is captured, row by row: images that were rejected or marked for audit, and truths about them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Decision
from serving.answers.recognition_id import Recognized
from serving.errors import CannotStart


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


@dataclass(frozen=True, eq=False)
class Worth:
    """Those images of an answer that are worth to be learnt from.

    Attributes:
        answer: what was answered.
        places: of the images in the answer, ascending; of a field all or none.
        images: (len(places), 784) uint8, a copy, so that others of the same call are not kept with them.
    """

    answer: Recognized
    places: Sequence[int]
    images: NDArray[np.uint8]

    @classmethod
    def of(cls, answer: Recognized, images: NDArray[np.uint8]) -> "Worth":
        """Of all the `images`, (n, 784) uint8, of an answer."""
        worth = _worth_learning(answer)
        places = [place for place in range(len(images)) if worth[0 if answer.of_field else place]]
        return cls(answer, places, images[places])

    def rows(self) -> Iterable[CapturedImage]:
        """Each of them by itself."""
        answer, nonce = self.answer, self.answer.nonce.hex()
        for place, image in zip(self.places, self.images, strict=True):
            decided = 0 if answer.of_field else place
            yield CapturedImage(
                answer=nonce,
                place=place,
                field_length=len(answer.digits) if answer.of_field else 0,
                model=answer.model,
                version=answer.version,
                digit=answer.digits[place],
                confidence=answer.confidences[decided],
                decision=Decision(answer.decisions[decided]).label,
                audited=answer.audited[decided],
                image=image.tobytes(),
            )


def worth_telling(answer: Recognized, places: Iterable[int]) -> list[int]:
    """Those places of an answer whose images are captured, and whose truth is then too."""
    worth = _worth_learning(answer)
    return [place for place in places if worth[place]]


def _worth_learning(answer: Recognized) -> list[bool]:
    """Where a person will look, and find a digit: rejected although there is ink, or to be audited; n, or 1 of a field."""
    return [
        audited or decision not in (Decision.ACCEPT, Decision.REJECT_INVALID_IMAGE)
        for decision, audited in zip(answer.decisions, answer.audited, strict=True)
    ]
