"""The accuracy that truth adds up to: worked out of the counts of all workers whenever somebody looks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_Z = 1.959964  # 97.5 % point of the normal distribution: intervals are of 95 %


class WithAccuracy(Collector):
    """What another collector counts, and what its counts of truth mean."""

    def __init__(self, counted: Collector):
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        """All of the other's metrics, then digits_accuracy_ratio and digits_accepted_error_ratio with its interval."""
        truth: Metric | None = None
        for metric in self._counted.collect():
            if metric.name == "digits_truth":
                truth = metric
            yield metric
        yield from _accuracy(truth)


def _accuracy(truth: Metric | None) -> Iterable[Metric]:
    by_source: defaultdict[tuple[str, ...], float] = defaultdict(float)
    audited: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for sample in truth.samples if truth else ():
        if sample.name != "digits_truth_total" or not sample.value:
            continue
        labels = sample.labels
        answered_by = (labels["model"], labels["version"], labels["unit"])
        by_source[*answered_by, labels["source"], labels["outcome"]] += sample.value
        if (labels["source"], labels["decision"]) == ("audit", "accept"):
            audited[*answered_by, labels["outcome"]] += sample.value
    accuracy = GaugeMetricFamily(
        "digits_accuracy_ratio",
        "Share of answers that were right, of those whose truth was reported, by its source.",
        labels=["model", "version", "unit", "source"],
    )
    for key, (right, wrong) in _outcomes(by_source).items():
        accuracy.add_metric(key, right / (right + wrong))
    error = GaugeMetricFamily(
        "digits_accepted_error_ratio",
        "Share of accepted answers that were wrong, estimated by audits, with the bounds of its 95 % interval (Wilson).",
        labels=["model", "version", "unit", "bound"],
    )
    for key, (right, wrong) in _outcomes(audited).items():
        lower, upper = wilson_interval(wrong, right + wrong)
        for bound, value in (("estimate", wrong / (right + wrong)), ("lower", lower), ("upper", upper)):
            error.add_metric((*key, bound), value)
    return accuracy, error


def _outcomes(counts: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], tuple[float, float]]:
    """How many were right and how many wrong, by all labels but the last, which says which."""
    keys = sorted({key[:-1] for key in counts})
    return {key: (counts.get((*key, "right"), 0.0), counts.get((*key, "wrong"), 0.0)) for key in keys}


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """The 95 % interval of a proportion, good near 0 and 1 too. Source: E. B. Wilson 1927, JASA 22, 209-212."""
    share = successes / trials
    centre = share + _Z * _Z / (2 * trials)
    spread = _Z * (share * (1 - share) / trials + _Z * _Z / (4 * trials * trials)) ** 0.5
    scale = 1 + _Z * _Z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
