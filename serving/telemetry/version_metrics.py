"""The metrics of one model version, with their labels already looked up."""

import itertools
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Decision
from serving.imaging.framing import measure
from serving.telemetry.metrics import Metrics

_MEASURED_TOGETHER = 64  # images


class Held(Protocol):
    """A request that a model version has held. Times are on the clock of time.monotonic.

    Attributes:
        arrived: when the request entered the queue.
        started: when the run with its first image began.
    """

    arrived: float
    started: float


class VersionMetrics:
    """Counts what one model version does. Looking labels up once, not per request, keeps the request path short.

    Attributes:
        queue_length: live images waiting for a run now.
        batch_queue_length: images of priority batch waiting for a run now.
        batch_images: images of priority batch that came to the queue.
        queue_seconds: time from arrival to first run, per answered request.
        batch_size: images per run.
        inference_seconds: time per run.
        answered_seconds: time per answered request.
        failed_seconds: time per request that ended without an answer.
        last_request: start of the last run, Unix time.
        decisions: decisions on single digits, by Decision.
        fields: decisions on fields, by Decision.
        audits: answers marked for audit, by unit: "digit" or "field".
    """

    def __init__(self, metrics: Metrics, model: str, version: str):
        self.queue_length = metrics.queue_length.labels(model, version)
        self.batch_queue_length = metrics.batch_queue_length.labels(model, version)
        self.batch_images = metrics.batch_images.labels(model, version)
        self.queue_seconds = metrics.queue_seconds.labels(model, version)
        self.batch_size = metrics.batch_size.labels(model, version)
        self.inference_seconds = metrics.inference_seconds.labels(model, version)
        self.answered_seconds = metrics.model_request_seconds.labels(model, version, "answered")
        self.failed_seconds = metrics.model_request_seconds.labels(model, version, "failed")
        self.last_request = metrics.last_request.labels(model, version)
        self._predictions = [metrics.predictions.labels(model, version, str(digit)) for digit in range(10)]
        self._confidence = metrics.confidence.labels(model, version)
        self._ink = metrics.ink.labels(model, version)
        self._centres = [metrics.mass_centre.labels(model, version, axis) for axis in ("row", "column")]
        self._measuring = threading.Lock()
        self._unmeasured: list[NDArray[np.uint8]] = []
        self._images_unmeasured = 0
        field_decisions = {decision for decision in Decision if decision}
        digit_decisions = field_decisions - {Decision.REJECT_NOT_IN_LEXICON}
        self.decisions, self.fields = (
            {int(decision): counter.labels(model, version, decision.label) for decision in decisions}
            for counter, decisions in ((metrics.decisions, digit_decisions), (metrics.fields, field_decisions))
        )
        self.audits = {unit: metrics.audits.labels(model, version, unit) for unit in ("digit", "field")}
        for unit, outcome in itertools.product(("digit", "field"), ("right", "wrong")):
            # Created at 0: Prometheus sees no increase in a series that begins at 1, and each accepted error counts.
            metrics.truth.labels(model, version, unit, "audit", "accept", outcome)
        for unit, (source, outcome) in itertools.product(
            ("digit", "field"), (("audit", "accepted"), ("keying", "digit_refused"))
        ):
            metrics.no_digit_truth.labels(model, version, unit, source, outcome)  # created at 0, for the same reason

    def count_answered(self, requests: Sequence[Held], ended: float) -> None:
        """Counts requests whose last run ended at `ended`, with the time that each waited and took."""
        if len(requests) > 1:
            arrived = np.array([request.arrived for request in requests])
            started = np.array([request.started for request in requests])
            self.queue_seconds.observe_all(started - arrived)
            self.answered_seconds.observe_all(ended - arrived)
        elif requests:
            self.queue_seconds.observe(requests[0].started - requests[0].arrived)
            self.answered_seconds.observe(ended - requests[0].arrived)

    def count_predictions(
        self, images: NDArray[np.uint8], digits: NDArray[np.float32], confidences: NDArray[np.float32]
    ) -> None:
        """Counts the predictions of a run, and measures its images. Thread-safe.

        Args:
            images: (n, 784) uint8, each with some ink.
            digits: (n,) the recognized digits.
            confidences: (n,) their probabilities.
        """
        self.measure(images)
        if len(digits) == 1:  # most runs of a quiet service; counting one value takes a fifth of the time of an array
            self._predictions[int(digits[0])].inc()
            self._confidence.observe(float(confidences[0]))
            return
        for digit, count in enumerate(np.bincount(digits.astype(np.intp), minlength=10).tolist()):
            if count:
                self._predictions[digit].inc(count)
        self._confidence.observe_all(confidences)

    def measure(self, images: NDArray[np.uint8]) -> None:
        """Records the ink and the centre of mass of `images`, (n, 784) uint8, each with some ink. Thread-safe.

        Images are collected and measured 64 at a time: one by one, this would take a few percent of a small run's time.
        """
        if not len(images):
            return
        with self._measuring:
            self._unmeasured.append(images)
            self._images_unmeasured += len(images)
            if self._images_unmeasured < _MEASURED_TOGETHER:
                return
            waiting, self._unmeasured, self._images_unmeasured = self._unmeasured, [], 0
        ink, centres = measure(np.concatenate(waiting))
        self._ink.observe_all(ink)
        for histogram, centre in zip(self._centres, centres.T, strict=True):
            histogram.observe_all(centre)
