"""Answers of the service as the client returns them."""

import enum
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from ..pb.digits.v1 import digit_service_pb2 as pb

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Decision(enum.IntEnum):
    """Accepts or rejects an answer. The numbers are those of digits.v1.Decision."""

    UNSPECIFIED = 0
    """A decision that this version of the client does not know."""
    ACCEPT = 1
    REJECT_LOW_CONFIDENCE = 2
    REJECT_INVALID_IMAGE = 3
    """No ink, or a crop that can't be decoded. Digit and confidence carry no meaning."""
    REJECT_NOT_CERTIFIED = 4
    """The model has no certified threshold for an error rate as low as the requested one."""
    REJECT_NOT_IN_LEXICON = 5
    """Most probably, the value of the field is not in the lexicon."""
    REJECT_NO_DIGIT = 6
    """The image, or an image of the field, does not show one whole digit. Digit and confidence carry no meaning."""


_NEVER_CAPTURED = (Decision.ACCEPT, Decision.REJECT_INVALID_IMAGE)


@dataclass(frozen=True, eq=False)
class Recognition:
    """The answer for one image.

    Attributes:
        digit: 0 to 9.
        confidence: calibrated probability that `digit` is correct.
        probabilities: (10,) float32, calibrated probability of each digit.
        model_version: version of the model that answered.
        decision: accept, or the reason to reject.
        threshold: least confidence that is accepted; None if no threshold is certified for the requested error rate.
        target_error_rate: largest share of wrong answers among accepted ones that the threshold is certified for; None
            without a threshold.
        trouble: reason why the crop could not be decoded; "" if it was.
        recognition_id: identifies the answer, together with `place`, when its truth is reported.
        place: index in the batch of the call, from 0.
        audit: True if a person should check the image although it was accepted.
        captured: True once the rejected or audited image is on disk, stored for training.
        whole: probability that the image shows one whole digit, 0 to 1. 1 if the model or the server can't tell; 0 if the
            server found, while framing the crop, that it may not be one digit.
    """

    digit: int
    confidence: float
    probabilities: NDArray[np.float32]
    model_version: str
    decision: Decision
    threshold: float | None
    target_error_rate: float | None
    trouble: str = ""
    recognition_id: str = ""
    place: int = 0
    audit: bool = False
    captured: bool = False
    whole: float = 1.0


@dataclass(frozen=True, eq=False)
class Field:
    """The answer for a field of n digits.

    Attributes:
        value: the n digits.
        confidence: calibrated probability that all of them are correct.
        decision: accept, or the reason to reject.
        candidates: (n, 3) intp, the three most probable digits of each image, in descending order of probability.
        probabilities: (n, 3) float32, the probability of each candidate.
        model_version: version of the model that answered.
        threshold: least confidence that is accepted; None if no threshold is certified for the requested error rate.
        target_error_rate: largest share of wrong fields among accepted ones that the threshold is certified for; None
            without a threshold.
        troubles: reasons why crops could not be decoded, by index.
        recognition_id: identifies the answer when its truth is reported.
        audit: True if a person should check the field although it was accepted.
        captured: True once the images of the rejected or audited field are on disk, stored for training.
        place: always 0.
        whole: n probabilities that each image shows one whole digit, as in Recognition.
        no_digits: indexes of the images that do not show one whole digit, ascending; at least one where the decision is
            REJECT_NO_DIGIT.
    """

    value: str
    confidence: float
    decision: Decision
    candidates: NDArray[np.intp]
    probabilities: NDArray[np.float32]
    model_version: str
    threshold: float | None
    target_error_rate: float | None
    troubles: dict[int, str]
    recognition_id: str
    audit: bool
    captured: bool
    place: int = 0
    whole: tuple[float, ...] = ()
    no_digits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """The error of one image of a stream. The stream continues.

    Attributes:
        code: status code that a call of its own would have ended with.
        reason: the reason in words.
        retry_after: seconds to wait before a retry; None if the server gave no time.
    """

    code: grpc.StatusCode
    reason: str
    retry_after: float | None = None


def recognition(answer: pb.RecognizeResponse) -> Recognition:
    """Converts the answer for one image."""
    return Recognition(
        answer.digit,
        answer.confidence,
        np.array(answer.probabilities, np.float32),
        answer.model_version,
        _decision(answer.decision),
        *_threshold(answer),
        recognition_id=answer.recognition_id,
        audit=answer.audit,
        captured=answer.captured,
        whole=_whole(answer),
    )


def recognitions(answer: pb.RecognizeBatchResponse) -> list[Recognition]:
    """Converts the answers for n images, in their order."""
    probabilities = np.array(answer.probabilities, np.float32).reshape(-1, 10)
    threshold, audits = _threshold(answer), set(answer.audits)
    whole = answer.whole or [1.0] * len(answer.digits)  # a server that does not know `whole` sends none
    columns = (answer.digits, answer.confidences, probabilities, map(_decision, answer.decisions), whole)
    return [
        Recognition(
            digit,
            confidence,
            row,
            answer.model_version,
            decision,
            *threshold,
            trouble=answer.troubles.get(index, ""),
            recognition_id=answer.recognition_id,
            place=index,
            audit=index in audits,
            captured=answer.captured and (index in audits or decision not in _NEVER_CAPTURED),
            whole=shown,
        )
        for index, (digit, confidence, row, decision, shown) in enumerate(zip(*columns, strict=True))
    ]


def field(answer: pb.ReadFieldResponse) -> Field:
    """Converts the answer for one field."""
    return Field(
        answer.value,
        answer.confidence,
        _decision(answer.decision),
        np.array([one.digits for one in answer.digits], np.intp),
        np.array([one.probabilities for one in answer.digits], np.float32),
        answer.model_version,
        *_threshold(answer),
        troubles=dict(answer.troubles),
        recognition_id=answer.recognition_id,
        audit=answer.audit,
        captured=answer.captured,
        whole=tuple(map(_whole, answer.digits)),
        no_digits=tuple(index for index, one in enumerate(answer.digits) if one.no_digit),
    )


def streamed(answer: pb.RecognizeStreamResponse) -> Recognition | Refusal:
    """Converts one response of a stream."""
    if answer.HasField("answer"):
        return recognition(answer.answer)
    error = answer.error
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return Refusal(code, error.message, error.retry_after_ms / 1000 if error.retry_after_ms else None)


def _decision(number: int) -> Decision:
    return Decision(number) if number in set(Decision) else Decision.UNSPECIFIED


def _whole(answer: pb.RecognizeResponse | pb.DigitCandidates) -> float:
    return answer.whole if answer.HasField("whole") else 1.0


def _threshold(
    answer: pb.RecognizeResponse | pb.RecognizeBatchResponse | pb.ReadFieldResponse,
) -> tuple[float | None, float | None]:
    return (answer.threshold, answer.target_error_rate) if answer.HasField("threshold") else (None, None)
