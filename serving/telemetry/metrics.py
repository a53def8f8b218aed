"""Every metric of a serving process. serving/README.md lists them for operators, from the help texts here."""

from collections.abc import Iterable, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from serving import build_info
from serving.telemetry.histograms import CENTRE, INK, BulkHistogram, BulkSummary
from serving.telemetry.model_statistics import Statistics, collect_statistics
from serving.telemetry.series_files import SeriesFiles, merge, version_key

# Bucket edges. prometheus_client's default edges begin at 5 ms, which most answers of this service stay below.
_SECONDS = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1, 2, 5),
)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CONFIDENCE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1)

_VERSION = ("model", "version")  # labels

disable_created_metrics()  # the _created series would double the number of series, and no query of ours reads them


class Metrics:
    """The metrics of one server, on a registry of its own: several servers can run in one process.

    If several workers serve together, counters and histograms are summed over all of them, and gauges are merged over the
    living workers: by sum, unless a gauge states another way.

    Attributes:
        registry: the metrics of this process only.
    """

    def __init__(self, files: SeriesFiles | None = None) -> None:
        """Starts all counts at 0, or where the previous worker of the same number ended.

        Args:
            files: the files in which this worker counts; None if this process serves alone.
        """
        self._files = files
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._define_build()
        self._define_requests()
        self._define_queue_and_runs()
        self._define_answers()
        self._define_drift()
        self._define_truth_and_capture()
        self._define_models()
        self._define_credentials()

    def statistics(self, versions: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Statistics]:
        """Returns the totals of the given versions, by model and version.

        With several workers this reads their files, which is slow. Ask once for all versions, and never on the event loop.
        """
        metrics = self.registry.collect() if self._files is None else merge(self._files.directory)
        return collect_statistics(metrics, versions)

    def versions(self) -> set[tuple[str, str]]:
        """Returns model and version of every version that has series in this process."""
        return {(labels[0], labels[1]) for metric in self._of_versions() for labels in [*metric._metrics] if labels[1]}

    def forget(self, version: tuple[str, str]) -> None:
        """Removes the series of a model and version from this process; `delete_files` ends them for all processes.

        What still counts in them shows no more.
        """
        for metric in self._of_versions():
            with metric._lock:
                for labels in [labels for labels in metric._metrics if labels[:2] == version]:
                    del metric._metrics[labels]
        if self._files:
            self._files.release(version_key(*version))

    def left_by_others(self, known: Iterable[tuple[str, str]]) -> set[str]:
        """Returns the keys of versions, except `known`, whose series a previous worker of the same number has left."""
        return self._files.versions() - {version_key(*version) for version in known} if self._files else set()

    def delete_files(self, key: str) -> None:
        """Deletes the files of a version, by its key, unless it counts again. Raises OSError."""
        if self._files:
            self._files.delete(key)

    def count_dropped(self) -> None:
        """Shows how many series have found no room, and logs the first."""
        if self._files:
            self.dropped_series.set(self._files.report_dropped())

    def _of_versions(self) -> list[MetricWrapperBase]:
        found = [metric for metric in vars(self).values() if isinstance(metric, MetricWrapperBase)]
        return [metric for metric in found if metric._labelnames[:2] == _VERSION]

    def _define_build(self) -> None:
        self.build_info = self._gauge(
            "digits_build_info",
            "Always 1. Labels: version and Git commit of the service, and version of ONNX Runtime.",
            ["version", "commit", "onnxruntime"],
            across_workers="livemax",
        )
        self.build_info.labels(build_info.version(), build_info.commit(), build_info.onnxruntime_version()).set(1)

        self.dropped_series = self._gauge(
            "digits_dropped_series",
            "Series that are missing here, because the metrics directory has no room for them. Always 0 with one worker.",
        )

    def _define_requests(self) -> None:
        self.requests = self._counter(
            "digits_requests",
            "Requests that ended, and streams that the server refused or ended, by method and gRPC status code. With the "
            "front grpcio, requests that gRPC itself refuses, such as oversized ones, are not counted.",
            ["method", "code"],
        )
        self.request_seconds = self._histogram(
            "digits_request_seconds",
            "Time from a request's arrival to its answer, by method. Each request of a stream is timed.",
            ["method"],
            buckets=_SECONDS,
        )
        self.in_flight_requests = self._gauge("digits_in_flight_requests", "Requests being answered now.")
        self.open_streams = self._gauge("digits_open_streams", "Streams open now.")
        self.rejected_requests = self._counter(
            "digits_rejected_requests",
            "Requests that ended without an answer, by reason: invalid, too_large, unsupported, unauthenticated, "
            "permission_denied, unknown_model, unknown_service, model_not_ready, load_failed, queue_full, batch_queue_full, "
            "too_busy, rate_limited, truth_not_stored, deadline, cancelled, stopping, model_error, internal.",
            ["reason"],
        )

        self.open_connections = self._gauge("digits_open_connections", "Connections open now, with the front http2.")
        self.limits_reached = self._counter(
            "digits_limits_reached",
            "Limits that clients have reached, with the front http2, by limit: connections, connections_per_peer, calls, "
            "header_bytes, request_bytes, answer_bytes, untaken_answers, resets, preface_time, message_time, answer_time, "
            "idle_time, keepalive, handshake, handshakes_per_second, and http2 for a breach of the protocol or a flood.",
            ["limit"],
        )
        self.log_lines_dropped = self._counter(
            "digits_log_lines_dropped",
            "Lines of the log that were dropped, because nobody took them from stderr as fast as they came.",
        )

    def _define_queue_and_runs(self) -> None:
        self.queue_length = self._gauge(
            "digits_queue_length_images", "Images of priority live waiting for a run now.", _VERSION
        )
        self.batch_queue_length = self._gauge(
            "digits_batch_queue_length_images", "Images of priority batch waiting for a run now.", _VERSION
        )
        self.batch_images = self._counter(
            "digits_batch_images",
            "Images of priority batch that came to the queue, refused ones included.",
            _VERSION,
        )
        self.queue_seconds = self._histogram(
            "digits_queue_seconds",
            "Time from a request's arrival to the start of the run with its first image, for answered requests.",
            _VERSION,
            buckets=_SECONDS,
        )
        self.batch_size = self._histogram("digits_batch_size_images", "Images per run.", _VERSION, buckets=_BATCH)
        self.crops_waiting = self._gauge("digits_crops_waiting", "Crops waiting to be framed now.")
        self.framing_seconds = self._histogram(
            "digits_framing_seconds", "Time to decode and frame one crop.", buckets=_SECONDS
        )
        self.inference_seconds = self._histogram(
            "digits_inference_seconds", "Time of one run of the model.", _VERSION, buckets=_SECONDS
        )
        self.model_request_seconds = BulkSummary(
            "digits_model_request_seconds",
            "Time that a model version held a request, by outcome: answered, failed.",
            [*_VERSION, "outcome"],
            registry=self.registry,
        )
        self.last_request = self._gauge(
            "digits_model_last_request_timestamp_seconds",
            "Start of the last run of a model version, Unix time.",
            _VERSION,
            across_workers="max",
        )

    def _define_answers(self) -> None:
        self.predictions = self._counter(
            "digits_predictions", "Images that the model takes for a digit, by the digit.", [*_VERSION, "digit"]
        )
        self.decisions = self._counter(
            "digits_decisions",
            "Digits answered one by one, not as a field, by decision: accept, or the reason for a reject: low_confidence, "
            "invalid_image, no_digit, not_certified.",
            [*_VERSION, "decision"],
        )
        self.fields = self._counter(
            "digits_fields",
            "Fields answered, by decision: accept, or the reason for a reject: low_confidence, invalid_image, "
            "no_digit, not_certified, not_in_lexicon.",
            [*_VERSION, "decision"],
        )
        self.confidence = self._histogram(
            "digits_confidence",
            "Confidence of the digit recognized, for images that the model takes for a digit.",
            _VERSION,
            buckets=_CONFIDENCE,
        )

    def _define_drift(self) -> None:
        self.ink = self._histogram(
            "digits_ink_ratio",
            "Share of the image that is ink, for images that the model takes for a digit.",
            _VERSION,
            buckets=INK,
        )
        self.mass_centre = self._histogram(
            "digits_mass_centre_pixels",
            "Centre of mass of images that the model takes for a digit, by axis (row, column), from 0 to 27. A framed image "
            "has it at 14, within half a pixel.",
            [*_VERSION, "axis"],
            buckets=CENTRE,
        )
        self.drift_reference = self._gauge(
            "digits_drift_reference_ratio",
            "Share of the images held out from a version's training, by feature and bin. digits_drift_psi compares served "
            "images with it.",
            [*_VERSION, "feature", "bin"],
            across_workers="livemax",
        )

    def _define_truth_and_capture(self) -> None:
        self.truth = self._counter(
            "digits_truth",
            "Answers with a reported truth, by unit (digit, field), source of the truth (keying, audit, replay), decision "
            "of the answer, and outcome (right, wrong). A reject as no digit is right where the truth is no digit.",
            [*_VERSION, "unit", "source", "decision", "outcome"],
        )
        self.no_digit_truth = self._counter(
            "digits_no_digit_truth",
            "Answers whose truth is no digit, by unit, source and outcome: accepted (an error), refused (rejected as no "
            "digit), rejected (for another reason). And answers rejected as no digit whose truth is a digit: digit_refused "
            "(an error).",
            [*_VERSION, "unit", "source", "outcome"],
        )
        self.audits = self._counter(
            "digits_audits",
            "Accepted answers marked for audit. Each should be followed by one truth from an audit.",
            [*_VERSION, "unit"],
        )
        self.truth_confidence = self._histogram(
            "digits_truth_confidence",
            "Confidence of answers with a reported truth, by source of the truth and outcome: shows how well the confidence "
            "is calibrated.",
            [*_VERSION, "unit", "source", "outcome"],
            buckets=_CONFIDENCE,
        )
        self.confusion = self._counter(
            "digits_confusion",
            "Digits with a reported truth, alone or in fields, by source of the truth, true digit and predicted digit; "
            "either may be no_digit.",
            [*_VERSION, "source", "true", "predicted"],
        )
        self.captured = self._counter(
            "digits_captured",
            "Images that were rejected or marked for audit, and truths about them (record), by outcome: stored, failed, "
            "skipped (too many were waiting).",
            ["record", "outcome"],
        )

    def _define_models(self) -> None:
        self.model_info = self._gauge(
            "digits_model_info",
            "1 for each loaded version, 0 after it is unloaded. Labels: recipe, accuracy on the MNIST test images, and "
            "version of the model contract.",
            [*_VERSION, "recipe", "test_accuracy", "contract"],
            across_workers="livemax",
        )
        self.model_role = self._gauge(
            "digits_model_role",
            "1 for the current role of a loaded version: stable, canary, shadow. 0 for its former roles.",
            [*_VERSION, "role"],
            across_workers="livemax",
        )
        self.model_refused = self._gauge(
            "digits_model_refused",
            "1 for each version in the repository that can't be served, by reason: unreadable, contract, self_check, "
            "crashed, hung, memory, environment (a cause outside the file; tried again), missing (routing names it). With "
            "reason routing and no version: routing.toml is invalid.",
            [*_VERSION, "reason"],
            across_workers="livemax",
        )
        self.shadow_images = self._counter(
            "digits_shadow_images",
            "Images answered by stable, by the result of the shadow: agreed, disagreed, failed, skipped.",
            [*_VERSION, "outcome"],
        )

    def _define_credentials(self) -> None:
        self.credentials_reload_failures = self._counter(
            "digits_credentials_reload_failures",
            "Polls that found a changed credential file invalid, by kind: tokens, tls. The previous credentials stay in "
            "use.",
            ["kind"],
        )
        self.tls_certificate_expiry = self._gauge(
            "digits_tls_certificate_expiry_timestamp_seconds",
            "Expiry of the server's certificate, Unix time; 0 without TLS.",
            across_workers="livemin",  # a single worker that is stuck on an old certificate must show
        )

    def _counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        across_workers: Literal["livesum", "livemax", "livemin", "max"] = "livesum",
    ) -> Gauge:
        return Gauge(name, documentation, labels, registry=self.registry, multiprocess_mode=across_workers)

    def _histogram(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> BulkHistogram:
        return BulkHistogram(name, documentation, labels, buckets=buckets, registry=self.registry)
