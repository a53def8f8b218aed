"""Drift: the distance between served images and a version's training images, measured without reported truth.

Four features are counted in bins: the digit recognized, the share of ink, and the row and the column of the centre of mass.
A version's metadata hold the shares of each bin for the images held out from its training. The population stability index
compares the counts with these shares, over windows of 2,000 images or more. The mean confidence over the same window
estimates the accuracy, as long as the confidence is still calibrated.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

WINDOW = 2000
"""Minimum number of images in a window. With fewer, the index jumps by chance alone."""

_MIN_SHARE = 0.0001  # for an empty bin, which would make the index infinite; Evidently uses the same share

_Version = tuple[str, str]  # model, version
_Key = tuple[_Version, str]  # with a feature
_Counts = dict[str, float]  # by bin


def stability_index(counts: Sequence[float], expected: Sequence[float]) -> float:
    """Computes the population stability index of two distributions over the same bins, 0 or more.

    By convention, below 0.1 the distribution has not moved, and above 0.2 it has moved much. Source: B. Yurdakul 2018,
    Statistical Properties of Population Stability Index, Western Michigan University, dissertation 3208.

    Args:
        counts: observed count of each bin, not all 0.
        expected: expected count or share of each bin, not all 0.
    """
    observed, reference = ([max(count / sum(part), _MIN_SHARE) for count in part] for part in (counts, expected))
    return sum((seen - usual) * math.log(seen / usual) for seen, usual in zip(observed, reference, strict=True))


class DriftCollector(Collector):
    """Adds the metrics of drift to those of another collector.

    A window ends at the first scrape that finds 2,000 images in it. Then the next window begins.
    """

    def __init__(self, counted: Collector):
        self._counted = counted
        self._lock = threading.Lock()  # scrapes may overlap
        self._begun: dict[_Key, tuple[float, _Counts]] = {}  # the counts when the window began: total, and by bin
        self._indices: dict[_Key, float] = {}
        self._accuracies: dict[_Version, float] = {}

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics of the other collector, then digits_drift_psi and digits_estimated_accuracy_ratio.

        The last two cover loaded versions only.
        """
        metrics = {metric.name: metric for metric in self._counted.collect()}
        yield from metrics.values()
        samples = {name: metric.samples for name, metric in metrics.items()}
        loaded = {_version(sample) for sample in samples.get("digits_model_info", ()) if sample.value}
        with self._lock:
            self._end_full_windows(samples)
            indices, accuracies = dict(self._indices), dict(self._accuracies)
        index = GaugeMetricFamily(
            "digits_drift_psi",
            "Population stability index of served images against the images held out from the version's training, over the "
            "last full window of 2,000 images or more, by feature: digit (recognized), ink (share of the image), row and "
            "column (of the centre of mass). Below 0.1 the images have not moved, above 0.2 they have moved much.",
            labels=["model", "version", "feature"],
        )
        for (version, feature), value in indices.items():
            if version in loaded:
                index.add_metric((*version, feature), value)
        accuracy = GaugeMetricFamily(
            "digits_estimated_accuracy_ratio",
            "Mean confidence over the last full window of 2,000 images or more: an estimate of the accuracy without truth.",
            labels=["model", "version"],
        )
        for version, value in accuracies.items():
            if version in loaded:
                accuracy.add_metric(version, value)
        yield index
        yield accuracy

    def _end_full_windows(self, samples: Mapping[str, Iterable[Sample]]) -> None:
        expected: defaultdict[_Key, _Counts] = defaultdict(dict)
        for sample in samples.get("digits_drift_reference_ratio", ()):
            expected[_version(sample), sample.labels["feature"]][sample.labels["bin"]] = sample.value
        for key, counts in _binned(samples).items():
            window = self._end_window(key, counts, sum(counts.values()))
            if window and key in expected:
                shares = expected[key]
                self._indices[key] = stability_index([window.get(name, 0.0) for name in shares], [*shares.values()])
        for version, counts in _confidences(samples).items():
            if window := self._end_window((version, "confidence"), counts, counts.get("count", 0.0)):
                # At most 1: an image that is being counted may be in the sum, but not yet in the count.
                self._accuracies[version] = min(window["sum"] / window["count"], 1.0)

    def _end_window(self, key: _Key, counts: _Counts, total: float) -> _Counts | None:
        """Ends a window if it is full.

        Args:
            key: version and feature.
            counts: count of each bin since the start of the service.
            total: number of images since the start of the service.

        Returns:
            The counts of the window; None if it is not full yet.
        """
        total_before, counts_before = self._begun.get(key, (0.0, {}))
        if total - total_before < WINDOW:
            return None
        self._begun[key] = (total, counts)
        return {name: count - counts_before.get(name, 0.0) for name, count in counts.items()}


def _version(sample: Sample) -> _Version:
    return sample.labels["model"], sample.labels["version"]


def _binned(samples: Mapping[str, Iterable[Sample]]) -> dict[_Key, _Counts]:
    """Returns the number of images so far in each bin, by version and feature."""
    counts: defaultdict[_Key, _Counts] = defaultdict(dict)
    for sample in samples.get("digits_predictions", ()):
        counts[_version(sample), "digit"][sample.labels["digit"]] = sample.value
    for name in ("digits_ink_ratio", "digits_mass_centre_pixels"):
        for sample in samples.get(name, ()):
            if sample.name == f"{name}_bucket":  # in ascending order, each including all before it
                key, edge = (_version(sample), sample.labels.get("axis", "ink")), sample.labels["le"]
                counts[key][edge] = sample.value - sum(counts[key].values())
    return counts


def _confidences(samples: Mapping[str, Iterable[Sample]]) -> dict[_Version, _Counts]:
    """Returns the number of images recognized so far and the sum of their confidences, by version."""
    counts: defaultdict[_Version, _Counts] = defaultdict(dict)
    for sample in samples.get("digits_confidence", ()):
        for name in ("sum", "count"):
            if sample.name == f"digits_confidence_{name}":
                counts[_version(sample)][name] = sample.value
    return counts
