"""Decides on readings: accept or reject by a certified threshold, mark for audit, issue the recognition id, capture."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Decision, Threshold
from serving.answers.lexicon import Lexicon
from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.contract import IMAGE_BYTES
from serving.errors import InvalidRequest
from serving.feedback.capture import Capture
from serving.inference.classifier import ONE_DIGIT
from serving.recognition.reading import FieldAnswer, Reading, Verdict

CANDIDATES = 3

# Tables of decisions, which cost a single image half of what numpy.where does. Index of the first: what the image shows.
# Index of the second: twice that, plus 1 if the confidence reaches the threshold. What is no digit is none at any error
# rate, so "no digit" goes before "not certified".
_NOT_CERTIFIED = np.array([Decision.REJECT_INVALID_IMAGE, Decision.REJECT_NO_DIGIT, Decision.REJECT_NOT_CERTIFIED], np.uint8)
_CERTIFIED = np.array(
    [
        *[Decision.REJECT_INVALID_IMAGE, Decision.REJECT_INVALID_IMAGE],
        *[Decision.REJECT_NO_DIGIT, Decision.REJECT_NO_DIGIT],
        *[Decision.REJECT_LOW_CONFIDENCE, Decision.ACCEPT],
    ],
    np.uint8,
)


class Policy:
    """Decides on readings, as the operator has set it up."""

    def __init__(
        self,
        target_error_rate: float,
        field_target_error_rate: float,
        lexicons: Mapping[str, Lexicon],
        ids: RecognitionIds,
        audit_rate: float,
        capture: Capture | None,
    ):
        """Takes the operator's settings.

        Args:
            target_error_rate: for digits, where a request names none.
            field_target_error_rate: for fields, where a request names none.
            lexicons: the lexicons that a request may name.
            ids: issues recognition ids.
            audit_rate: share of the accepted answers that are marked for audit.
            capture: stores images that were rejected or marked for audit; None stores nothing.
        """
        self._target_error_rate = target_error_rate
        self._field_target_error_rate = field_target_error_rate
        self._lexicons = lexicons
        self._ids = ids
        self._audit_rate = audit_rate
        self._capture = capture
        self._random = np.random.default_rng()

    def lexicon(self, name: str) -> Lexicon | None:
        """Finds a lexicon; None for "". Raises InvalidRequest for an unknown name."""
        if not name:
            return None
        if name not in self._lexicons:
            known = ", ".join(sorted(self._lexicons)) or "none"
            raise InvalidRequest(f"there is no lexicon {name[:64]!r}, this server has: {known}")
        return self._lexicons[name]

    async def decide_digits(
        self, reading: Reading, target_error_rate: float, deadline: float, *, audit: bool = True
    ) -> Verdict:
        """Decides on each of n digits.

        Args:
            reading: the output of the model.
            target_error_rate: of the request; 0 for the operator's own.
            deadline: of the answer, on the clock of time.monotonic.
            audit: False marks no answer for audit.
        """
        loaded = reading.loaded
        threshold = choose(loaded.model.metadata.thresholds, target_error_rate or self._target_error_rate)
        confidences = reading.confidences
        decisions = decide(confidences, reading.shows, threshold)
        audited = self._sample_audits(decisions) if audit else np.zeros(len(decisions), bool)
        encoded, marks = decisions.tobytes(), audited.tolist()
        answer = Recognized(
            loaded.name, loaded.version, False, reading.digits.tobytes(), encoded, marks, confidences.tolist()
        )
        for decision in set(encoded):
            loaded.metrics.decisions[decision].inc(encoded.count(decision))
        return await self._verdict(answer, reading, decisions, audited, threshold, deadline)

    async def decide_field(
        self, reading: Reading, target_error_rate: float, deadline: float, lexicon: Lexicon | None
    ) -> FieldAnswer:
        """Decides on n digits as one field. One image without ink, or without a whole digit, rejects the field.

        Args:
            reading: the output of the model.
            target_error_rate: of the request; 0 for the operator's own.
            deadline: of the answer, on the clock of time.monotonic.
            lexicon: the field is the most probable code of this lexicon; None takes the most probable digits.
        """
        probabilities = reading.probabilities.astype(np.float64)
        if lexicon:
            code, confidence, unlisted = lexicon.lookup(probabilities)
            digits = bytes(code.tolist())
        else:
            digits, confidence, unlisted = reading.digits.tobytes(), float(probabilities.max(axis=1).prod()), 0.0
        loaded = reading.loaded
        metadata = loaded.model.metadata
        certified = metadata.thresholds if len(digits) == 1 else metadata.field_thresholds.get(len(digits), ())
        threshold = choose(certified, target_error_rate or self._field_target_error_rate)
        shows = reading.shows.min(keepdims=True)
        decisions = decide(np.array([confidence]), shows, threshold)
        if unlisted > 0.5 and shows[0] == ONE_DIGIT:
            decisions[0] = Decision.REJECT_NOT_IN_LEXICON
        audited = self._sample_audits(decisions)
        answer = Recognized(loaded.name, loaded.version, True, digits, decisions.tobytes(), audited.tolist(), [confidence])
        loaded.metrics.fields[int(decisions[0])].inc()
        verdict = await self._verdict(answer, reading, decisions, audited, threshold, deadline)
        candidates = np.argsort(-probabilities, axis=1, kind="stable")[:, :CANDIDATES]
        likely = np.take_along_axis(probabilities, candidates, axis=1)
        return FieldAnswer(reading, "".join(map(str, digits)), confidence, candidates, likely, verdict)

    async def _verdict(
        self,
        answer: Recognized,
        reading: Reading,
        decisions: NDArray[np.uint8],
        audited: NDArray[np.bool_],
        threshold: Threshold | None,
        deadline: float,
    ) -> Verdict:
        """Counts audits, has the images captured where the operator wants that, and issues the recognition id."""
        marked = answer.audited.count(True)
        if marked:
            reading.loaded.metrics.audits["field" if answer.of_field else "digit"].inc(marked)
        captured = False
        if self._capture is not None:
            images = np.frombuffer(reading.pixels, np.uint8).reshape(-1, IMAGE_BYTES)
            captured = await self._capture.keep(answer, images, reading.whole, deadline)
        return Verdict(decisions, audited, threshold, self._ids.issue(answer), captured)

    def _sample_audits(self, decisions: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Marks a random share of the accepted answers, (n,) bool: an unbiased sample of all accepted answers."""
        if not self._audit_rate:
            return np.zeros(len(decisions), bool)
        marked: NDArray[np.bool_] = (decisions == Decision.ACCEPT) & (self._random.random(len(decisions)) < self._audit_rate)
        return marked


def choose(certified: Sequence[Threshold], target_error_rate: float) -> Threshold | None:
    """Picks the threshold for the largest error rate up to the target; None when none is certified.

    Args:
        certified: the largest error rate first.
        target_error_rate: share of wrong answers to tolerate among those accepted.
    """
    return next((one for one in certified if one.target_error_rate <= target_error_rate), None)


def decide(confidences: NDArray[np.floating], shows: NDArray[np.uint8], threshold: Threshold | None) -> NDArray[np.uint8]:
    """Decides on n answers.

    Args:
        confidences: (n,) float.
        shows: (n,) uint8, what each image shows: BLANK, NOT_ONE_DIGIT or ONE_DIGIT.
        threshold: the least confidence to accept; None accepts nothing.

    Returns:
        (n,) uint8, a Decision each.
    """
    if threshold is None:
        return _NOT_CERTIFIED.take(shows)
    least = np.float64(threshold.confidence)  # NumPy would round a Python float to float32 before it compares
    return _CERTIFIED.take((confidences >= least) + 2 * shows)
