"""What was really there: truth about answers, from keying desks, audits and replays, by the version that answered."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.answers.decision import Decision
from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.errors import InvalidRequest
from serving.feedback.capture import Capture
from serving.feedback.capture_records import CapturedTruth, worth_telling
from serving.telemetry.metrics import Metrics

_REMEMBERED = 200_000  # truths that a worker knows again, at least half as many


@dataclass(frozen=True)
class Truth:
    """What somebody says of an answer.

    Attributes:
        recognition_id: that of the answer.
        source: keying, audit or replay.
        values: by the place of a digit in the answer, from 0, what it is; or, by 0, all the digits of a field.
    """

    recognition_id: str
    source: str
    values: dict[int, str]


class Truths:
    """Counts truth, and knows what it has counted."""

    def __init__(
        self, ids: RecognitionIds, knows: Callable[[str, str], bool], metrics: Metrics, capture: Capture | None = None
    ):
        """Begins without a memory.

        Args:
            ids: reads the ids of answers.
            knows: whether there is such a version, by model and version; ids without a signature may name no others.
            metrics: where truth is counted.
            capture: keeps the truth about images that it may have kept; None keeps nothing.
        """
        self._ids = ids
        self._knows = knows
        self._metrics = metrics
        self._capture = capture
        self._seen: set[tuple[bytes, int, str]] = set()
        self._seen_before: set[tuple[bytes, int, str]] = set()

    async def report(self, truths: Sequence[Truth]) -> int:
        """Stores and counts all of them, or none; what was counted before, of the same source, is passed over.

        Returns:
            How many answers were counted now.

        Raises:
            InvalidRequest: one is not about an answer that was given here, or not about a digit in it.
            TruthNotStored: capture is on, and can't store them.
        """
        answers = []
        for number, truth in enumerate(truths):
            try:
                answers.append(self._ids.read(truth.recognition_id))
                self._check(truth, answers[-1])
            except InvalidRequest as error:
                raise InvalidRequest(f"truth {number}: {error}") from None
        if self._capture:
            await self._capture.keep_truths(
                [
                    CapturedTruth(answer.nonce.hex(), place, truth.source, truth.values[place])
                    for truth, answer in zip(truths, answers, strict=True)
                    for place in worth_telling(answer, truth.values)
                ]
            )
        tally = _Tally()
        for truth, answer in zip(truths, answers, strict=True):
            for place, value in truth.values.items():
                if self._is_new((answer.nonce, place, truth.source)):
                    tally.add(answer, place, value, truth.source)
        tally.count(self._metrics)
        return tally.truth.total()

    def _check(self, truth: Truth, answer: Recognized) -> None:
        if not self._ids.signed and not self._knows(answer.model, answer.version):
            raise InvalidRequest("there is no such version here as it says has answered, and it has no signature")
        length = len(answer.digits) if answer.of_field else 1
        for place, value in truth.values.items():
            if place >= len(answer.decisions):
                raise InvalidRequest(f"there is no place {place}, the answer has {len(answer.decisions)}")
            if len(value) != length or not (value.isascii() and value.isdigit()):
                raise InvalidRequest(f"{value[:40]!r} is no truth about it, expected {length} digit(s)")
            if truth.source == "audit" and not answer.audited[place]:
                raise InvalidRequest("the answer was not marked for audit: the audited error would be biased")

    def _is_new(self, key: tuple[bytes, int, str]) -> bool:
        if key in self._seen or key in self._seen_before:
            return False
        if len(self._seen) >= _REMEMBERED // 2:
            self._seen, self._seen_before = set(), self._seen
        self._seen.add(key)
        return True


class _Tally:
    """The truths of one call, added up before they are counted: a metric costs more than a truth."""

    def __init__(self) -> None:
        self.truth: Counter[tuple[str, ...]] = Counter()
        self.confusion: Counter[tuple[str, ...]] = Counter()
        self.confidences: dict[tuple[str, ...], list[float]] = {}

    def add(self, answer: Recognized, place: int, value: str, source: str) -> None:
        said = answer.digits if answer.of_field else answer.digits[place : place + 1]
        meant = bytes(map(int, value))
        decision = Decision(answer.decisions[place])
        version = (answer.model, answer.version)
        kind = (*version, "field" if answer.of_field else "digit", source)
        outcome = "right" if said == meant else "wrong"
        self.truth[*kind, decision.label, outcome] += 1
        if decision is not Decision.REJECT_INVALID_IMAGE:  # there, digits and confidence mean nothing
            self.confidences.setdefault((*kind, outcome), []).append(answer.confidences[place])
            self.confusion.update((*version, source, str(true), str(read)) for true, read in zip(meant, said, strict=True))

    def count(self, metrics: Metrics) -> None:
        for labels, times in self.truth.items():
            metrics.truth.labels(*labels).inc(times)
        for labels, times in self.confusion.items():
            metrics.confusion.labels(*labels).inc(times)
        for labels, confidences in self.confidences.items():
            metrics.truth_confidence.labels(*labels).observe_all(np.array(confidences, np.float32))
