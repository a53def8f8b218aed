"""The rows of capture: images that were rejected or marked for audit, and truths about them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Decision
from serving.answers.recognition_id import Recognized
from serving.errors import CannotStart

NO_DIGIT_BY_FRAMER = "no_digit_by_framer"  # in the column `decision`

_REJECTED_WITH_INK = np.array([decision not in (Decision.ACCEPT, Decision.REJECT_INVALID_IMAGE) for decision in Decision])


class CaptureError(CannotStart):
    """Capture can't start with these settings. The message gives the reason."""


class NotStored(Exception):
    """The database did not store or delete the rows. The message gives the reason."""


@dataclass(frozen=True)
class CapturedImage:
    """One row of the table captured_images. Each attribute is a column.

    Attributes:
        answer: nonce of the answer's recognition id, 16 hexadecimal digits.
        place: index of the image in the answer, from 0.
        field_length: number of digits in the field that the image belongs to; 0 for a digit that is not in a field.
        model: name of the model that answered.
        version: its version.
        digit: digit recognized.
        confidence: confidence of the digit; for a field, confidence of the whole field.
        decision: label of the decision, as in the metrics; NO_DIGIT_BY_FRAMER for an image that the framer of crops refused,
            so that no model could have had it accepted.
        audited: True if the answer was marked for audit.
        image: 784 bytes, the network's input.
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
    """One row of the table captured_truths. Each attribute is a column.

    Attributes:
        answer: nonce of the answer's recognition id, as in CapturedImage.
        place: index of the image in the answer, from 0; 0 for a field.
        source: "keying", "audit" or "replay".
        value: true digit, or all true digits of a field, with "x" for each image that does not show one whole digit.
    """

    answer: str
    place: int
    source: str
    value: str


@dataclass(frozen=True, eq=False)
class CaptureSelection:
    """The images of one answer that are to be captured.

    Attributes:
        answer: the answer.
        indexes: index of each image in the answer, ascending. All images of a field are selected, or none is.
        images: (len(indexes), 784) uint8, a copy: a view would keep all images of the call in memory.
        whole: (len(indexes),) float32, 0 for an image that the framer of crops refused.
    """

    answer: Recognized
    indexes: Sequence[int]
    images: NDArray[np.uint8]
    whole: NDArray[np.float32]

    @classmethod
    def of(cls, answer: Recognized, images: NDArray[np.uint8], whole: NDArray[np.float32]) -> "CaptureSelection":
        """Selects from all the `images` of an answer, (n, 784) uint8, and their `whole`, (n,) float32."""
        selected = _selected(answer)
        indexes = [index for index in range(len(images)) if selected[0 if answer.of_field else index]]
        return cls(answer, indexes, images[indexes], whole[indexes])

    def rows(self) -> Iterable[CapturedImage]:
        """Yields the row of each image."""
        answer, nonce = self.answer, self.answer.nonce.hex()
        for index, image, whole in zip(self.indexes, self.images, self.whole, strict=True):
            decided = 0 if answer.of_field else index
            yield CapturedImage(
                answer=nonce,
                place=index,
                field_length=len(answer.digits) if answer.of_field else 0,
                model=answer.model,
                version=answer.version,
                digit=answer.digits[index],
                confidence=answer.confidences[decided],
                decision=Decision(answer.decisions[decided]).label if whole else NO_DIGIT_BY_FRAMER,
                audited=answer.audited[decided],
                image=image.tobytes(),
            )


def captured_indexes(answer: Recognized, indexes: Iterable[int]) -> list[int]:
    """Keeps the `indexes` of an answer whose images are captured. Only their truths are stored."""
    wanted = [*indexes]  # mostly few of those of a long answer
    decisions = np.array([answer.decisions[index] for index in wanted], np.uint8)
    audited = np.array([answer.audited[index] for index in wanted], np.bool_)
    return [index for index, captured in zip(wanted, is_captured(decisions, audited).tolist(), strict=True) if captured]


def is_captured(decisions: NDArray[np.uint8], audited: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Selects the decisions worth learning from: a person will look at the image, and there is ink to see.

    Args:
        decisions: (n,) uint8, a Decision each.
        audited: (n,) bool, True for answers that were marked for audit.

    Returns:
        (n,) bool: True if the image was marked for audit, or rejected although it has ink.
    """
    selected: NDArray[np.bool_] = audited | _REJECTED_WITH_INK.take(decisions)
    return selected


def _selected(answer: Recognized) -> list[bool]:
    """Selects the decisions of an answer: n flags, or 1 for a field."""
    selected: list[bool] = is_captured(np.frombuffer(answer.decisions, np.uint8), np.array(answer.audited)).tolist()
    return selected
