"""Decides on readings: accept or reject by a certified threshold, mark for audit, issue the recognition id, capture."""

from collections.abc import Mapping, Sequence
from typing import Literal

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
from serving.repository.catalog import Loaded

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
    """Decides on readings, as the operator has set it up.

    Attributes:
        ids: issues recognition ids.
        capture: stores images that were rejected or marked for audit; None stores nothing.
    """

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
        self.ids = ids
        self._audit_rate = audit_rate
        self.capture = capture
        self._random = np.random.default_rng()

    def lexicon(self, name: str) -> Lexicon | None:
        """Finds a lexicon; None for "". Raises InvalidRequest for an unknown name."""
        if not name:
            return None
        if name not in self._lexicons:
            known = ", ".join(sorted(self._lexicons)) or "none"
            raise InvalidRequest(f"there is no lexicon {name[:64]!r}, this server has: {known}")
        return self._lexicons[name]

    def threshold(self, loaded: Loaded, target_error_rate: float) -> Threshold | None:
        """Picks the threshold for digits; a target of 0 stands for the operator's own."""
        return choose(loaded.model.metadata.thresholds, target_error_rate or self._target_error_rate)

    def decide_each(
        self,
        loaded: Loaded,
        threshold: Threshold | None,
        confidences: NDArray[np.float32],
        shows: NDArray[np.uint8],
        *,
        audit: bool,
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Decides on each of n digits, marks some of them for audit, and counts both.

        Args:
            loaded: the version that answers.
            threshold: the least confidence to accept; None accepts nothing.
            confidences: (n,) float32.
            shows: (n,) uint8, what each image shows: BLANK, NOT_ONE_DIGIT or ONE_DIGIT.
            audit: False marks no answer for audit.

        Returns:
            (n,) uint8, a Decision each, and (n,) bool, the marks.
        """
        decisions = decide(confidences, shows, threshold)
        audited = self._sample_audits(decisions) if audit else np.zeros(len(decisions), bool)
        encoded = decisions.tobytes()
        for decision in set(encoded):
            loaded.metrics.decisions[decision].inc(encoded.count(decision))
        _count_audits(loaded, "digit", audited)
        return decisions, audited

    async def decide_digits(
        self, reading: Reading, target_error_rate: float, deadline: float, *, audit: bool = True
    ) -> Verdict:
        """Decides on n digits of one request.

        Args:
            reading: the output of the model.
            target_error_rate: of the request; 0 for the operator's own.
            deadline: of the answer, on the clock of time.monotonic.
            audit: False marks no answer for audit.
        """
        loaded, confidences = reading.loaded, reading.confidences
        threshold = self.threshold(loaded, target_error_rate)
        decisions, audited = self.decide_each(loaded, threshold, confidences, reading.shows, audit=audit)
        named = (loaded.name, loaded.version, False)
        digits = reading.digits.tobytes()
        answer = Recognized(*named, digits, decisions.tobytes(), audited.tolist(), confidences.tolist())
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
        _count_audits(loaded, "field", audited)
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
        """Has the images captured where the operator wants that, and issues the recognition id."""
        captured = False
        if self.capture is not None:
            images = np.frombuffer(reading.pixels, np.uint8).reshape(-1, IMAGE_BYTES)
            captured = await self.capture.keep(answer, images, reading.whole, deadline)
        return Verdict(decisions, audited, threshold, self.ids.issue(answer), captured)

    def _sample_audits(self, decisions: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Marks a random share of the accepted answers, (n,) bool: an unbiased sample of all accepted answers."""
        if not self._audit_rate:
            return np.zeros(len(decisions), bool)
        marked: NDArray[np.bool_] = (decisions == Decision.ACCEPT) & (self._random.random(len(decisions)) < self._audit_rate)
        return marked


def _count_audits(loaded: Loaded, unit: Literal["digit", "field"], audited: NDArray[np.bool_]) -> None:
    marked = int(np.count_nonzero(audited))
    if marked:
        loaded.metrics.audits[unit].inc(marked)


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
