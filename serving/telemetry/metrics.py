"""Every metric of the service, in one place. README.md has the same list, for operators."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.multiprocess import MultiProcessCollector

from serving.telemetry.histograms import CENTRE, INK, BulkHistogram

_SECONDS = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1, 2, 5),
)  # prometheus_client's own begin at 5 ms, where this service has long answered
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1)
_VERSION = ["model", "version"]


disable_created_metrics()  # a second series for every first, that no query of ours wants


@dataclass(frozen=True)
class Statistics:
    """What one version of a model has done so far, over all the workers of this service; times in seconds.

    Attributes:
        images: images run.
        runs: runs of the model.
        answered, answered_seconds: requests answered, and their time from arrival to answer.
        failed, failed_seconds: requests that ended otherwise, and their time.
        queued_seconds: the part of `answered_seconds` before the first run.
        last_request_seconds: when the last run began, Unix time; 0 when none has.
    """

    images: int
    runs: int
    answered: int
    answered_seconds: float
    failed: int
    failed_seconds: float
    queued_seconds: float
    last_request_seconds: float


class Metrics:
    """The metrics of one server, on a registry of its own, so that several servers can live in one process.

    Where several workers serve together, a gauge is added up over those that live.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Counts from nothing, or where this worker's predecessor ended.

        Args:
            directory: where the workers that serve together count; None when this process serves alone.
        """
        self._directory = directory
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.requests = Counter(
            "digits_requests",
            "Requests ended, and streams that the server refused or ended, by method and gRPC status code; not those that "
            "gRPC itself refuses, as oversized ones.",
            ["method", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "digits_request_seconds",
            "Time from a request's arrival to its answer, by method; of a stream, for each of its requests.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight_requests = Gauge(
            "digits_in_flight_requests", "Requests being answered now.", registry=registry, multiprocess_mode="livesum"
        )
        self.open_streams = Gauge("digits_open_streams", "Streams open now.", registry=registry, multiprocess_mode="livesum")
        self.rejected_requests = Counter(
            "digits_rejected_requests",
            "Requests not answered, by reason: invalid, unsupported, unauthenticated, permission_denied, unknown_model, "
            "model_not_ready, load_failed, queue_full, too_busy, rate_limited, truth_not_stored, deadline, cancelled, "
            "stopping, model_error, internal.",
            ["reason"],
            registry=registry,
        )
        self.queue_length = Gauge(
            "digits_queue_length_images",
            "Images waiting for a run now.",
            _VERSION,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_seconds = Histogram(
            "digits_queue_seconds",
            "Time from a request's arrival to the start of the run that has its first image, of requests answered.",
            _VERSION,
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "digits_batch_size_images", "Images in a run.", _VERSION, buckets=_BATCH, registry=registry
        )
        self.crops_waiting = Gauge(
            "digits_crops_waiting", "Crops waiting to be framed now.", registry=registry, multiprocess_mode="livesum"
        )
        self.framing_seconds = Histogram(
            "digits_framing_seconds",
            "Time that it takes to decode and frame a crop.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "digits_inference_seconds", "Time a run of the model takes.", _VERSION, buckets=_SECONDS, registry=registry
        )
        self.model_request_seconds = Summary(
            "digits_model_request_seconds",
            "Time that a version of a model had a request, by outcome: answered, failed.",
            [*_VERSION, "outcome"],
            registry=registry,
        )
        self.last_request = Gauge(
            "digits_model_last_request_timestamp_seconds",
            "When the last run of a version of a model began, Unix time.",
            _VERSION,
            registry=registry,
            multiprocess_mode="max",
        )
        self.predictions = Counter(
            "digits_predictions", "Images with ink that were read, by digit.", [*_VERSION, "digit"], registry=registry
        )
        self.decisions = Counter(
            "digits_decisions",
            "Digits answered by themselves, not as a field, by what is to become of them: accept, or the reason to reject: "
            "low_confidence, invalid_image, not_certified.",
            [*_VERSION, "decision"],
            registry=registry,
        )
        self.fields = Counter(
            "digits_fields",
            "Fields answered, by what is to become of them: accept, or the reason to reject: low_confidence, invalid_image, "
            "not_certified, not_in_lexicon.",
            [*_VERSION, "decision"],
            registry=registry,
        )
        self.confidence = BulkHistogram(
            "digits_confidence",
            "Confidence of the images with ink that were read.",
            _VERSION,
            buckets=_CONFIDENCE,
            registry=registry,
        )
        self.ink = BulkHistogram(
            "digits_ink_ratio",
            "Share of an image that is ink, of the images with any that were read.",
            _VERSION,
            buckets=INK,
            registry=registry,
        )
        self.mass_centre = BulkHistogram(
            "digits_mass_centre_pixels",
            "Where their centre of mass is, by axis (row, column), from 0 to 27: framed, at 14, give or take a half.",
            [*_VERSION, "axis"],
            buckets=CENTRE,
            registry=registry,
        )
        self.drift_reference = Gauge(
            "digits_drift_reference_ratio",
            "Share, by feature and bin, of the images held out from a version's training, for digits_drift_psi.",
            [*_VERSION, "feature", "bin"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.truth = Counter(
            "digits_truth",
            "Answers whose truth was reported: digits or fields (unit), by the truth's source (keying, audit, replay), the "
            "answer's decision, and its outcome (right, wrong).",
            [*_VERSION, "unit", "source", "decision", "outcome"],
            registry=registry,
        )
        self.audits = Counter(
            "digits_audits",
            "Accepted answers that were marked for audit: as many truths should come of them.",
            [*_VERSION, "unit"],
            registry=registry,
        )
        self.truth_confidence = BulkHistogram(
            "digits_truth_confidence",
            "Confidence of the answers whose truth was reported, by its source and outcome: what confidence is worth.",
            [*_VERSION, "unit", "source", "outcome"],
            buckets=_CONFIDENCE,
            registry=registry,
        )
        self.confusion = Counter(
            "digits_confusion",
            "Digits whose truth was reported, those of fields too, by its source, what they are and what they were read as.",
            [*_VERSION, "source", "true", "predicted"],
            registry=registry,
        )
        self.captured = Counter(
            "digits_captured",
            "Images that were rejected or marked for audit, and truths about them (record), by what became of them: stored, "
            "failed, skipped (too many waited).",
            ["record", "outcome"],
            registry=registry,
        )
        self.model_info = Gauge(
            "digits_model_info",
            "1 for each version loaded, 0 once it is not; its recipe, and its accuracy on the MNIST test images.",
            [*_VERSION, "recipe", "test_accuracy"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.model_role = Gauge(
            "digits_model_role",
            "1 for the role a loaded version has: stable, canary, shadow; 0 for the roles it had.",
            [*_VERSION, "role"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.model_refused = Gauge(
            "digits_model_refused",
            "1 for each version in the repository that can't be served, by reason: unreadable, contract, self_check, "
            "missing (routing names it); with reason routing, and no version, for a routing.toml that can't be followed.",
            [*_VERSION, "reason"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.shadow_images = Counter(
            "digits_shadow_images",
            "Images answered by stable, by what the shadow made of them: agreed, disagreed, failed, skipped.",
            [*_VERSION, "outcome"],
            registry=registry,
        )
        self.credentials_reload_failures = Counter(
            "digits_credentials_reload_failures",
            "Looks at credential files that found them changed and of no use, by kind: tokens, tls; the old ones go on.",
            ["kind"],
            registry=registry,
        )
        self.tls_certificate_expiry = Gauge(
            "digits_tls_certificate_expiry_timestamp_seconds",
            "When the server's certificate expires, Unix time; 0 without TLS.",
            registry=registry,
            multiprocess_mode="livemin",  # a worker that is stuck on an old certificate must show
        )

    def collected(self) -> CollectorRegistry:
        """What a scrape shows: this server's metrics, or those of all the workers that serve together with it."""
        if self._directory is None:
            return self.registry
        merged = CollectorRegistry()
        MultiProcessCollector(merged, str(self._directory))
        return merged

    def statistics(self, versions: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Statistics]:
        """What versions have done so far, by model and version; with several workers it reads their files.

        That takes long, so it is done once for all versions, and is not to be done on the event loop.
        """
        found: dict[tuple[str, str], dict[tuple[str, str], float]] = {version: {} for version in versions}
        for metric in self.collected().collect():
            for sample in metric.samples:
                values = found.get((sample.labels.get("model", ""), sample.labels.get("version", "")))
                if values is not None:
                    values[sample.name, sample.labels.get("outcome", "")] = sample.value
        return {version: _statistics(values) for version, values in found.items()}


def _statistics(values: dict[tuple[str, str], float]) -> Statistics:
    """From what the metrics of one version say, by name and outcome."""

    def value(name: str, outcome: str = "") -> float:
        return values.get((f"digits_{name}", outcome), 0.0)

    return Statistics(
        images=int(value("batch_size_images_sum")),
        runs=int(value("inference_seconds_count")),
        answered=int(value("model_request_seconds_count", "answered")),
        answered_seconds=value("model_request_seconds_sum", "answered"),
        failed=int(value("model_request_seconds_count", "failed")),
        failed_seconds=value("model_request_seconds_sum", "failed"),
        queued_seconds=value("queue_seconds_sum"),
        last_request_seconds=value("model_last_request_timestamp_seconds"),
    )
