"""Every metric of the service, in one place. README.md has the same list, for operators."""

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

_SECONDS = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1, 2, 5),
)  # prometheus_client's own begin at 5 ms, where this service has long answered
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1)


disable_created_metrics()  # a second series for every first, that no query of ours wants


class Metrics:
    """The metrics of one server, on a registry of its own, so that several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.requests = Counter(
            "digits_requests",
            "Requests ended, by method and gRPC status code; not those that gRPC itself refuses, as oversized ones.",
            ["method", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "digits_request_seconds",
            "Time from a decoded request to its answer, by method.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight_requests = Gauge("digits_in_flight_requests", "Requests being answered now.", registry=registry)
        self.rejected_requests = Counter(
            "digits_rejected_requests",
            "Requests not answered, by reason: invalid, queue_full, deadline, cancelled, stopping, model_error, internal.",
            ["reason"],
            registry=registry,
        )
        self.queue_length = Gauge("digits_queue_length_images", "Images waiting for a batch now.", registry=registry)
        self.queue_seconds = Histogram(
            "digits_queue_seconds",
            "Time from a request's arrival to the start of the run that has its first image.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram("digits_batch_size_images", "Images in a run.", buckets=_BATCH, registry=registry)
        self.inference_seconds = Histogram(
            "digits_inference_seconds", "Time a run of the model takes.", buckets=_SECONDS, registry=registry
        )
        self.predictions = Counter("digits_predictions", "Images answered, by digit.", ["digit"], registry=registry)
        self.confidence = BulkHistogram(
            "digits_confidence", "Confidence of the images answered.", buckets=_CONFIDENCE, registry=registry
        )
        self.model_info = Gauge(
            "digits_model_info",
            "1 for the model being served; its version, its recipe, and its accuracy on the MNIST test images.",
            ["version", "recipe", "test_accuracy"],
            registry=registry,
        )
        self._predictions = [self.predictions.labels(str(digit)) for digit in range(10)]

    def count_predictions(self, digits: NDArray[np.intp], confidences: NDArray[np.float32]) -> None:
        """Counts the answers of one request: `digits` and `confidences`, (N,) each."""
        for digit, count in enumerate(np.bincount(digits, minlength=10).tolist()):
            if count:
                self._predictions[digit].inc(count)
        self.confidence.observe_all(confidences)

    def calls_by_code(self) -> dict[str, int]:
        """How many calls have ended so far, by status code."""
        calls: dict[str, int] = {}
        for metric in self.requests.collect():
            for sample in metric.samples:
                code = sample.labels["code"]
                calls[code] = calls.get(code, 0) + int(sample.value)
        return calls


class BulkHistogram(Histogram):
    """A histogram without labels that takes many observations for little more than the price of one.

    A request of a thousand images would otherwise pay for a thousand lock round trips.
    """

    def observe_all(self, values: NDArray[np.float32]) -> None:
        """Observes every one of `values`."""
        buckets = np.bincount(np.searchsorted(self._upper_bounds, values), minlength=len(self._buckets))
        for bucket, count in enumerate(buckets.tolist()):
            if count:
                self._buckets[bucket].inc(count)
        self._sum.inc(float(values.sum(dtype=np.float64)))
