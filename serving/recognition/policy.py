"""What becomes of what was read: of single digits and of fields, by the thresholds of the version that read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Decision, Threshold, choose, decide
from serving.answers.lexicon import Lexicon
from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.errors import InvalidRequest
from serving.feedback.capture import Capture
from serving.recognition.recognizer import Reading

CANDIDATES = 3


class DigitAnswers(NamedTuple):
    """What becomes of n digits.

    Attributes:
        decisions: a Decision each.
        threshold: by which they were taken; None where none is certified.
        audited: which of those accepted somebody is to look at.
        recognition_id: by which truth about them is reported.
        captured: whether the images that were rejected or are to be audited are stored.
    """

    decisions: bytes
    threshold: Threshold | None
    audited: list[bool]
    recognition_id: str
    captured: bool


@dataclass(frozen=True, eq=False)
class FieldAnswer:
    """What a field of n digits says.

    Attributes:
        value: its digits.
        confidence: probability that all of them are right.
        decision: what is to become of it.
        threshold: by which that was decided; None where none is certified.
        candidates: (n, 3), the most probable digits of each image, the most probable first.
        probabilities: (n, 3), of each.
        audited: whether somebody is to look at it although it is accepted.
        recognition_id: by which truth about it is reported.
        captured: whether its images are stored, if it was rejected or is to be audited.
    """

    value: str
    confidence: float
    decision: Decision
    threshold: Threshold | None
    candidates: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    audited: bool
    recognition_id: str
    captured: bool


class Policy:
    """Accepts and rejects, counts what it did, and has images captured."""

    def __init__(
        self,
        target_error_rate: float,
        field_target_error_rate: float,
        lexicons: Mapping[str, Lexicon],
        ids: RecognitionIds,
        audit_rate: float,
        capture: Capture | None,
    ):
        """Goes by what the operator has set.

        Args:
            target_error_rate: of digits, where a call names none.
            field_target_error_rate: of fields, likewise.
            lexicons: that a call may name.
            ids: gives answers their ids.
            audit_rate: share of the accepted answers to be audited.
            capture: keeps what is rejected or to be audited; None keeps nothing.
        """
        self._target_error_rate = target_error_rate
        self._field_target_error_rate = field_target_error_rate
        self._lexicons = lexicons
        self._ids = ids
        self._audit_rate = audit_rate
        self._capture = capture
        self._random = np.random.default_rng()

    def target(self, asked: float, *, of_field: bool = False) -> float:
        """The error rate to hold to, where `asked` is a call's own, or 0. Raises InvalidRequest."""
        if not 0 <= asked < 1:  # NaN too
            raise InvalidRequest(f"target_error_rate is {asked}, expected a share below 1, or 0")
        return asked or (self._field_target_error_rate if of_field else self._target_error_rate)

    def lexicon(self, name: str) -> Lexicon | None:
        """The lexicon of that name; None for "". Raises InvalidRequest when there is none."""
        if not name:
            return None
        if name not in self._lexicons:
            there = ", ".join(sorted(self._lexicons)) or "none"
            raise InvalidRequest(f"there is no lexicon {name[:64]!r}, this server has: {there}")
        return self._lexicons[name]

    async def digits(
        self, reading: Reading, target_error_rate: float, deadline: float, *, audit: bool = True
    ) -> DigitAnswers:
        """What becomes of each digit by itself.

        Args:
            reading: what the images show.
            target_error_rate: to hold to.
            deadline: when the answer must be given, monotonic clock.
            audit: whether some may be marked for audit: there is somebody to tell.
        """
        loaded = reading.loaded
        threshold = choose(loaded.model.thresholds, target_error_rate)
        decisions = decide(reading.confidences, reading.inked, threshold)
        loaded.metrics.count_decisions(decisions)
        audited = self._chosen(decisions) if audit else [False] * len(decisions)
        loaded.metrics.count_audits("digit", sum(audited))
        digits = bytes(reading.digits)
        answer = Recognized(loaded.name, loaded.version, False, digits, decisions, audited, reading.confidences)
        captured = await self._keep(answer, reading, deadline)
        return DigitAnswers(decisions, threshold, audited, self._ids.issue(answer), captured)

    async def field(
        self, reading: Reading, target_error_rate: float, deadline: float, lexicon: Lexicon | None
    ) -> FieldAnswer:
        """One answer for all n digits: in a lexicon the most probable code, without one the most probable digits."""
        probabilities = reading.probabilities.astype(np.float64)
        if lexicon:
            code, confidence, unlisted = lexicon.lookup(probabilities)
            digits = code.tolist()
        else:
            digits, confidence, unlisted = reading.digits, float(probabilities.max(axis=1).prod()), 0.0
        loaded = reading.loaded
        model = loaded.model
        certified = model.thresholds if len(digits) == 1 else model.field_thresholds.get(len(digits), ())
        threshold = choose(certified, target_error_rate)
        decision = Decision(decide([confidence], [all(reading.inked)], threshold)[0])
        if unlisted > 0.5 and decision is not Decision.REJECT_INVALID_IMAGE:
            decision = Decision.REJECT_NOT_IN_LEXICON
        loaded.metrics.count_field(decision)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :CANDIDATES]
        likely = np.take_along_axis(probabilities, order, axis=1)
        decisions = bytes([decision])
        audited = self._chosen(decisions)
        loaded.metrics.count_audits("field", sum(audited))
        answer = Recognized(loaded.name, loaded.version, True, bytes(digits), decisions, audited, [confidence])
        captured = await self._keep(answer, reading, deadline)
        return FieldAnswer(
            "".join(map(str, digits)),
            confidence,
            decision,
            threshold,
            order,
            likely,
            audited[0],
            self._ids.issue(answer),
            captured,
        )

    async def _keep(self, answer: Recognized, reading: Reading, deadline: float) -> bool:
        return self._capture is not None and await self._capture.keep(answer, reading.images, deadline)

    def _chosen(self, decisions: bytes) -> list[bool]:
        """Which answers are to be audited: of those accepted a share, at random, so that they stand for all of them."""
        if not self._audit_rate:
            return [False] * len(decisions)
        chances = self._random.random(len(decisions)).tolist()
        return [
            decision == Decision.ACCEPT and chance < self._audit_rate
            for decision, chance in zip(decisions, chances, strict=True)
        ]
