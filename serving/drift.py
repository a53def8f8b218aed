"""Drift: how far what is served now is from what a version was certified on, seen without anybody's truth.

Four features are counted in bins: the digit that was read, how much ink there is, and the row and the column of its centre
of mass. Each of these counts is compared with the shares that a version's metadata give for the images held out from its
training, by the population stability index, over windows of 2,000 images or more. And the mean confidence over such a window
estimates the accuracy, as far as the confidence is still calibrated.
"""

import json
import math
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import le

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

WINDOW = 2000
"""Images in a window, at least: of fewer, chance alone makes the index jump."""

INK = (*(0.02, 0.05, 0.08, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14, 0.16, 0.18, 0.2), *(0.25, 0.3, 0.4, 0.6, 0.8))
"""Upper edges of the bins of ink, as a share of the image: about a tenth of MNIST's images each, and some beyond."""

CENTRE = (6, 10, 12, 13, 13.4, 13.6, 13.8, 14, 14.2, 14.4, 14.6, 15, 16, 18, 22)
"""Those of a centre of mass's row or column. MNIST's are evenly spread from 13.5 to 14.5, and end there: with edges there, a
hair's breadth beyond them would make all the difference."""

_EDGES = {"ink": INK, "row": CENTRE, "column": CENTRE}

_LEAST_SHARE = 0.0001  # what an empty bin counts for, or the index would be infinite; Evidently takes as much

_Version = tuple[str, str]  # model, version
_Key = tuple[_Version, str]  # and a feature
_Counts = dict[str, float]  # by bin


def reference(text: str) -> dict[str, dict[str, float]]:
    """What a version's metadata say of the images held out from its training.

    Args:
        text: {"digit": the share of each digit in what was read, "ink", "row" and "column": percentiles of these, ascending
            from the least to the most}, as JSON.

    Returns:
        By feature, the share of the images in each bin; a bin goes by its digit, or its upper edge.

    Raises:
        ValueError: it is not.
    """
    stated = json.loads(text)
    try:
        digits = [float(share) for share in stated["digit"]]
        percentiles = {feature: [float(value) for value in stated[feature]] for feature in _EDGES}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not what four features are like: {text[:200]}") from error
    ascending = all(len(values) > 1 and all(map(le, values, values[1:])) for values in percentiles.values())
    if len(digits) != 10 or min(digits) < 0 or not math.isclose(sum(digits), 1, abs_tol=1e-3) or not ascending:
        raise ValueError(f"not ten shares and ascending percentiles: {text[:200]}")
    shares = {"digit": {str(digit): share for digit, share in enumerate(digits)}}
    for feature, edges in _EDGES.items():
        below = [0.0, *(_below(edge, percentiles[feature]) for edge in edges), 1.0]
        names = [floatToGoString(edge) for edge in (*edges, math.inf)]
        shares[feature] = {name: high - low for name, low, high in zip(names, below, below[1:], strict=False)}
    return shares


def _below(edge: float, percentiles: Sequence[float]) -> float:
    """The share of what lies at or below `edge`, between two percentiles in proportion."""
    above = bisect_right(percentiles, edge)
    if above in (0, len(percentiles)):
        return 1.0 if above else 0.0
    low, high = percentiles[above - 1 : above + 1]
    return (above - 1 + (edge - low) / (high - low)) / (len(percentiles) - 1)


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
