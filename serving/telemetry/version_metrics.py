"""DOC."""

import itertools
import threading
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Decision
from serving.imaging.framing import measure
from serving.telemetry.metrics import Metrics

_MEASURED_TOGETHER = 64  # images


class VersionMetrics:
    """The metrics of one version of a model, looked up once rather than for each request."""

    def __init__(self, metrics: Metrics, model: str, version: str):
        self.queue_length = metrics.queue_length.labels(model, version)
        self.queue_seconds = metrics.queue_seconds.labels(model, version)
        self.batch_size = metrics.batch_size.labels(model, version)
        self.inference_seconds = metrics.inference_seconds.labels(model, version)
        self.answered_seconds = metrics.model_request_seconds.labels(model, version, "answered")
        self.failed_seconds = metrics.model_request_seconds.labels(model, version, "failed")
        self.last_request = metrics.last_request.labels(model, version)
        self._confidence = metrics.confidence.labels(model, version)
        self._ink = metrics.ink.labels(model, version)
        self._centres = [metrics.mass_centre.labels(model, version, axis) for axis in ("row", "column")]
        self._measuring = threading.Lock()
        self._unmeasured: list[NDArray[np.uint8]] = []
        self._images_unmeasured = 0
        for unit, outcome in itertools.product(("digit", "field"), ("right", "wrong")):
            # From 0: Prometheus sees no increase in what begins with 1, and each error among the accepted counts.
            metrics.truth.labels(model, version, unit, "audit", "accept", outcome)
        self._audits = {unit: metrics.audits.labels(model, version, unit) for unit in ("digit", "field")}
        self._predictions = [metrics.predictions.labels(model, version, str(digit)) for digit in range(10)]
        of_field = {decision for decision in Decision if decision}
        self._decisions, self._fields = (
            {int(decision): counter.labels(model, version, decision.label) for decision in of}
            for counter, of in (
                (metrics.decisions, of_field - {Decision.REJECT_NOT_IN_LEXICON}),
                (metrics.fields, of_field),
            )
        )

    def count_predictions(self, digits: NDArray[np.intp], confidences: NDArray[np.float32]) -> None:
        """Counts what was read in the images of a run: `digits` and `confidences`, (n,) each; from any thread."""
        for digit, count in enumerate(np.bincount(digits, minlength=10).tolist()):
            if count:
                self._predictions[digit].inc(count)
        self._confidence.observe_all(confidences)

    def measure(self, images: NDArray[np.uint8]) -> None:
        """Counts how much ink there is on `images`, (n, 784) with some on each, and where; from any thread.

        A few dozen images wait to be measured together: one by one it would cost a small run some hundredths of its time.
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

    def count_decisions(self, decisions: bytes) -> None:
        """Counts what becomes of single digits: a Decision each."""
        for decision in set(decisions):
            self._decisions[decision].inc(decisions.count(decision))

    def count_audits(self, unit: Literal["digit", "field"], count: int) -> None:
        """Counts answers that were marked for audit."""
        if count:
            self._audits[unit].inc(count)

    def count_field(self, decision: Decision) -> None:
        """Counts what becomes of a field."""
        self._fields[decision].inc()
