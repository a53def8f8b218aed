"""Totals of each model version since the service started, read back from its metrics."""

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric


@dataclass(frozen=True)
class Statistics:
    """Totals of one model version over all workers. Times are in seconds.

    Attributes:
        images: images run.
        runs: runs of the model.
        answered: requests answered.
        answered_seconds: total time from arrival to answer, of the answered requests.
        failed: requests that ended without an answer.
        failed_seconds: total time from arrival to end, of the failed requests.
        queued_seconds: the part of `answered_seconds` before the first run of each request.
        last_request_seconds: start of the last run, Unix time; 0 before the first.
    """

    images: int
    runs: int
    answered: int
    answered_seconds: float
    failed: int
    failed_seconds: float
    queued_seconds: float
    last_request_seconds: float


def collect_statistics(metrics: Iterable[Metric], versions: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Statistics]:
    """Sums up the given versions.

    Args:
        metrics: the metrics of this process, or the merged metrics of all workers.
        versions: pairs of model and version.

    Returns:
        The totals by model and version; all 0 for a version that has no metrics.
    """
    samples: dict[tuple[str, str], dict[tuple[str, str], float]] = {version: {} for version in versions}
    for metric in metrics:
        for sample in metric.samples:
            values = samples.get((sample.labels.get("model", ""), sample.labels.get("version", "")))
            if values is not None:
                values[sample.name, sample.labels.get("outcome", "")] = sample.value
    return {version: _statistics(values) for version, values in samples.items()}


def _statistics(values: dict[tuple[str, str], float]) -> Statistics:
    """Builds the totals of one version from its samples by name and outcome."""

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
