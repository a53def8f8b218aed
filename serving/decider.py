"""What becomes of what was read: of single digits and of fields, by the thresholds of the version that read them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.decision import Decision, Threshold, choose, decide
from serving.errors import InvalidRequest
from serving.lexicon import Lexicon
from serving.recognizer import Reading

CANDIDATES = 3


@dataclass(frozen=True)
class FieldAnswer:
    """What a field of n digits says.

    Attributes:
        value: its digits.
        confidence: probability that all of them are right.
        decision: what is to become of it.
        threshold: by which that was decided; None where none is certified.
        candidates: (n, 3), the most probable digits of each image, the most probable first.
        probabilities: (n, 3), of each.
    """

    value: str
    confidence: float
    decision: Decision
    threshold: Threshold | None
    candidates: NDArray[np.intp]
    probabilities: NDArray[np.float64]


class Decider:
    """Accepts and rejects, and counts what it did."""

    def __init__(self, target_error_rate: float, field_target_error_rate: float, lexicons: Mapping[str, Lexicon]):
        """Goes by the error rates for digits and for fields where a call names none, and by lexicons that it may name."""
        self._target_error_rate = target_error_rate
        self._field_target_error_rate = field_target_error_rate
        self._lexicons = lexicons

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

    def digits(self, reading: Reading, target_error_rate: float) -> tuple[NDArray[np.uint8], Threshold | None]:
        """A Decision for each digit, (n,) uint8, and the threshold by which they were taken, where one is certified."""
        threshold = choose(reading.loaded.model.thresholds, target_error_rate)
        decisions = decide(reading.confidences, reading.inked, threshold)
        reading.loaded.metrics.count_decisions(decisions)
        return decisions, threshold

    def field(self, reading: Reading, target_error_rate: float, lexicon: Lexicon | None) -> FieldAnswer:
        """One answer for all n digits: in a lexicon the most probable code, without one the most probable digits."""
        probabilities = reading.probabilities.astype(np.float64)
        if lexicon:
            digits, confidence, unlisted = lexicon.read(probabilities)
        else:
            digits, confidence, unlisted = reading.digits, float(probabilities.max(axis=1).prod()), 0.0
        model = reading.loaded.model
        certified = model.thresholds if len(digits) == 1 else model.field_thresholds.get(len(digits), ())
        threshold = choose(certified, target_error_rate)
        [number] = decide(np.array([confidence]), np.array([reading.inked.all()]), threshold).tolist()
        decision = Decision(number)
        if unlisted > 0.5 and decision is not Decision.REJECT_INVALID_IMAGE:
            decision = Decision.REJECT_NOT_IN_LEXICON
        reading.loaded.metrics.count_field(decision)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :CANDIDATES]
        likely = np.take_along_axis(probabilities, order, axis=1)
        return FieldAnswer("".join(map(str, digits.tolist())), confidence, decision, threshold, order, likely)
