"""Reported truth: counts how often answers were right, by model version and by source of the truth."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.answers.decision import Decision
from serving.answers.recognition_id import LONG_ID, RecognitionIds, Recognized
from serving.client.truths import NO_DIGIT
from serving.errors import InvalidRequest
from serving.feedback.capture import Capture
from serving.feedback.capture_records import CapturedTruth, captured_indexes
from serving.feedback.turns import Turns
from serving.telemetry.metrics import Metrics

# Truths that a worker remembers at most, to count each once. It forgets the older half at a time.
_MAX_REMEMBERED = 200_000

_VALUES = frozenset("0123456789" + NO_DIGIT)
_NO_DIGIT_LABEL = Decision.REJECT_NO_DIGIT.label


@dataclass(frozen=True)
class Truth:
    """The truth about one answer.

    Attributes:
        recognition_id: id of the answer.
        source: "keying", "audit" or "replay".
        values: true digit, or NO_DIGIT, by index of the image in the answer, from 0. For a field, index 0 holds the true
            digits, or NO_DIGIT, of all its images.
    """

    recognition_id: str
    source: str
    values: dict[int, str]


class TruthCounter:
    """Counts truths, each once per source."""

    def __init__(
        self, ids: RecognitionIds, knows: Callable[[str, str], bool], metrics: Metrics, capture: Capture | None = None
    ):
        """Starts with no truth remembered.

        Args:
            ids: parses the ids of answers.
            knows: returns True if the server has this model and version. Unsigned ids may name no other version.
            metrics: counts the truths.
            capture: stores the truth about images that may have been captured; None stores nothing.
        """
        self._ids = ids
        self._knows = knows
        self._metrics = metrics
        self._capture = capture
        self._recent: set[tuple[bytes, int, str]] = set()
        self._older: set[tuple[bytes, int, str]] = set()
        self._counting: set[asyncio.Task[int]] = set()  # the event loop itself keeps no task alive

    async def report(self, truths: Sequence[Truth]) -> int:
        """Stores and counts all the truths, or none. Skips values that were already counted from the same source.

        Returns:
            Number of values counted now.

        Raises:
            InvalidRequest: a truth names an answer that was not given here, or a value that does not fit its answer.
            TruthNotStored: capture is on, and the truths can't be stored.
        """
        answers: list[Recognized] = []
        records: list[CapturedTruth] = []
        turns = Turns()
        for number, truth in enumerate(truths):
            await turns.pause()
            try:
                answer = await self._parse(truth.recognition_id)
                self._check(truth, answer)
            except InvalidRequest as error:
                raise InvalidRequest(f"truth {number}: {error}") from None
            answers.append(answer)
            if self._capture:
                records += (
                    CapturedTruth(answer.nonce.hex(), index, truth.source, truth.values[index])
                    for index in captured_indexes(answer, truth.values)
                )
        if self._capture:
            await self._capture.keep_truths(records)
        # A task of its own: a caller who goes meanwhile must not leave the report half counted.
        counting = asyncio.create_task(self._count(truths, answers))
        self._counting.add(counting)
        counting.add_done_callback(self._counting.discard)
        return await asyncio.shield(counting)

    async def _parse(self, text: str) -> Recognized:
        return await asyncio.to_thread(self._ids.parse, text) if len(text) > LONG_ID else self._ids.parse(text)

    async def _count(self, truths: Sequence[Truth], answers: Sequence[Recognized]) -> int:
        """Counts the values that were not counted before; returns their number."""
        tally, turns = _Tally(), Turns()
        for truth, answer in zip(truths, answers, strict=True):
            for index, value in truth.values.items():
                await turns.pause()
                if self._remember((answer.nonce, index, truth.source)):
                    tally.add(answer, index, value, truth.source)
        tally.count(self._metrics)
        return tally.truth.total()

    def _check(self, truth: Truth, answer: Recognized) -> None:
        if not self._ids.signed and not self._knows(answer.model, answer.version):
            raise InvalidRequest("recognition_id has no signature, and names a model version that this server does not have")
        length = len(answer.digits) if answer.of_field else 1
        for index, value in truth.values.items():
            if index >= len(answer.decisions):
                raise InvalidRequest(f"values has index {index}, expected less than {len(answer.decisions)}")
            if len(value) != length or not _VALUES.issuperset(value):
                raise InvalidRequest(
                    f"values[{index}] is {value[:40]!r}, expected {length} digit(s) from 0 to 9, or {NO_DIGIT} for no digit"
                )
            if truth.source == "audit" and not answer.audited[index]:
                raise InvalidRequest(
                    "source is audit, but the answer was not marked for audit; counting it would bias the audited error"
                )

    def _remember(self, key: tuple[bytes, int, str]) -> bool:
        """Remembers a truth. Returns False if it was remembered already."""
        if key in self._recent or key in self._older:
            return False
        if len(self._recent) >= _MAX_REMEMBERED // 2:
            self._recent, self._older = set(), self._recent
        self._recent.add(key)
        return True


class _Tally:
    """The truths of one call, summed before they reach the metrics: one metric update costs more than one truth."""

    def __init__(self) -> None:
        self.truth: Counter[tuple[str, ...]] = Counter()
        self.no_digits: Counter[tuple[str, ...]] = Counter()
        self.confusion: Counter[tuple[str, ...]] = Counter()
        self.confidences: dict[tuple[str, ...], list[float]] = {}

    def add(self, answer: Recognized, index: int, value: str, source: str) -> None:
        predicted = "".join(map(str, answer.digits if answer.of_field else answer.digits[index : index + 1]))
        decision = Decision(answer.decisions[index])
        refused = decision is Decision.REJECT_NO_DIGIT
        version = (answer.model, answer.version)
        unit = (*version, "field" if answer.of_field else "digit", source)
        right = NO_DIGIT in value if refused else predicted == value
        outcome = "right" if right else "wrong"
        self.truth[*unit, decision.label, outcome] += 1
        if NO_DIGIT in value or refused:
            self.no_digits[*unit, _no_digit_outcome(decision, value)] += 1
        if decision is Decision.REJECT_INVALID_IMAGE or (refused and answer.of_field):
            return  # its digits and its confidence mean nothing; and of a field, it is not known which image was refused
        if not refused:
            self.confidences.setdefault((*unit, outcome), []).append(answer.confidences[index])
        self.confusion.update(
            (*version, source, _label(true), _NO_DIGIT_LABEL if refused else guess)
            for true, guess in zip(value, predicted, strict=True)
        )

    def count(self, metrics: Metrics) -> None:
        for counter, counts in (
            (metrics.truth, self.truth),
            (metrics.no_digit_truth, self.no_digits),
            (metrics.confusion, self.confusion),
        ):
            for labels, times in counts.items():
                counter.labels(*labels).inc(times)
        for labels, confidences in self.confidences.items():
            metrics.truth_confidence.labels(*labels).observe_all(np.array(confidences, np.float32))


def _no_digit_outcome(decision: Decision, value: str) -> str:
    """Returns the outcome, in digits_no_digit_truth, of an answer rejected as no digit or whose truth has no digit."""
    if decision is Decision.REJECT_NO_DIGIT:
        return "refused" if NO_DIGIT in value else "digit_refused"
    return "accepted" if decision is Decision.ACCEPT else "rejected"


def _label(true: str) -> str:
    return _NO_DIGIT_LABEL if true == NO_DIGIT else true
