"""Drift: how far what is served now is from what a version was certified on, seen without anybody's truth.

Four features are counted in bins: the digit that was read, how much ink there is, and the row and the column of its centre
of mass. Each of these counts is compared with the shares that a version's metadata give for the images held out from its
training, by the population stability index, over windows of 2,000 images or more. And the mean confidence over such a window
estimates the accuracy, as far as the confidence is still calibrated.
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
"""Images in a window, at least: of fewer, chance alone makes the index jump."""


_LEAST_SHARE = 0.0001  # what an empty bin counts for, or the index would be infinite; Evidently takes as much

_Version = tuple[str, str]  # model, version
_Key = tuple[_Version, str]  # and a feature
_Counts = dict[str, float]  # by bin


def stability_index(counts: Sequence[float], expected: Sequence[float]) -> float:
    """The population stability index of counts in bins against others, 0 or more.

    By custom, below 0.1 nothing has moved, and above 0.2 much has. Source: B. Yurdakul 2018, Statistical Properties of
    Population Stability Index, Western Michigan University, dissertation 3208.

    Args:
        counts: in each bin, not all of them 0.
        expected: likewise.
    """
    found, wanted = ([max(count / sum(part), _LEAST_SHARE) for count in part] for part in (counts, expected))
    return sum((here - there) * math.log(here / there) for here, there in zip(found, wanted, strict=True))


class WithDrift(Collector):
    """What another collector counts, and what the latest windows of it say about drift.

    A window ends at the first look that finds 2,000 images in it, and the next begins.
    """

    def __init__(self, counted: Collector):
        self._counted = counted
        self._lock = threading.Lock()  # several may look at once
        self._begun: dict[_Key, tuple[float, _Counts]] = {}  # what had been counted when the window began, in all and by bin
        self._indices: dict[_Key, float] = {}
        self._accuracies: dict[_Version, float] = {}

    def collect(self) -> Iterator[Metric]:
        """All of the other's metrics, then, of loaded versions, digits_drift_psi and digits_estimated_accuracy_ratio."""
        metrics = {metric.name: metric for metric in self._counted.collect()}
        yield from metrics.values()
        samples = {name: metric.samples for name, metric in metrics.items()}
        loaded = {_version(sample) for sample in samples.get("digits_model_info", ()) if sample.value}
        with self._lock:
            self._look(samples)
            indices, accuracies = dict(self._indices), dict(self._accuracies)
        index = GaugeMetricFamily(
            "digits_drift_psi",
            "Population stability index of what is served against the images held out from the version's training, over the "
            "last whole window of 2,000 images or more, by feature: digit (that was read), ink (share of the image), row "
            "and column (of the centre of mass). Below 0.1 nothing has moved, above 0.2 much has.",
            labels=["model", "version", "feature"],
        )
        for (version, feature), value in indices.items():
            if version in loaded:
                index.add_metric((*version, feature), value)
        accuracy = GaugeMetricFamily(
            "digits_estimated_accuracy_ratio",
            "Mean confidence over the last whole window of 2,000 images or more: the accuracy, as it seems without truth.",
            labels=["model", "version"],
        )
        for version, value in accuracies.items():
            if version in loaded:
                accuracy.add_metric(version, value)
        yield index
        yield accuracy

    def _look(self, samples: Mapping[str, Iterable[Sample]]) -> None:
        """Ends the windows that are full."""
        expected: defaultdict[_Key, _Counts] = defaultdict(dict)
        for sample in samples.get("digits_drift_reference_ratio", ()):
            expected[_version(sample), sample.labels["feature"]][sample.labels["bin"]] = sample.value
        for key, counts in _binned(samples).items():
            window = self._ended(key, counts, sum(counts.values()))
            if window and key in expected:
                shares = expected[key]
                self._indices[key] = stability_index([window.get(name, 0.0) for name in shares], [*shares.values()])
        for version, counts in _confidences(samples).items():
            if window := self._ended((version, "confidence"), counts, counts.get("count", 0.0)):
                self._accuracies[version] = min(window["sum"] / window["count"], 1.0)  # an image may be in the sum only, yet

    def _ended(self, key: _Key, counts: _Counts, total: float) -> _Counts | None:
        """What was counted in the window that now ends, if it does: `counts` and their `total` are of all time."""
        began, counts_then = self._begun.get(key, (0.0, {}))
        if total - began < WINDOW:
            return None
        self._begun[key] = (total, counts)
        return {name: count - counts_then.get(name, 0.0) for name, count in counts.items()}


def _version(sample: Sample) -> _Version:
    return sample.labels["model"], sample.labels["version"]


def _binned(samples: Mapping[str, Iterable[Sample]]) -> dict[_Key, _Counts]:
    """The images counted so far in each bin, by version and feature."""
    counts: defaultdict[_Key, _Counts] = defaultdict(dict)
    for sample in samples.get("digits_predictions", ()):
        counts[_version(sample), "digit"][sample.labels["digit"]] = sample.value
    for name in ("digits_ink_ratio", "digits_mass_centre_pixels"):
        for sample in samples.get(name, ()):
            if sample.name == f"{name}_bucket":  # in ascending order, and each holds those before it
                key, edge = (_version(sample), sample.labels.get("axis", "ink")), sample.labels["le"]
                counts[key][edge] = sample.value - sum(counts[key].values())
    return counts


def _confidences(samples: Mapping[str, Iterable[Sample]]) -> dict[_Version, _Counts]:
    """How many images were read so far, and the sum of their confidences, by version."""
    counts: defaultdict[_Version, _Counts] = defaultdict(dict)
    for sample in samples.get("digits_confidence", ()):
        for name in ("sum", "count"):
            if sample.name == f"digits_confidence_{name}":
                counts[_version(sample)][name] = sample.value
    return counts
