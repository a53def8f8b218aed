"""Accuracy and audited error, derived from the counts of truth of all workers at each scrape."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_Z = 1.959964  # 97.5 % quantile of the normal distribution, for 95 % intervals


class AccuracyCollector(Collector):
    """Adds the metrics of accuracy to those of another collector."""

    def __init__(self, counted: Collector):
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        """Yields all metrics of the other collector, then digits_accuracy_ratio and digits_accepted_error_ratio."""
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
        "Share of right answers among those with a reported truth, by source of the truth.",
        labels=["model", "version", "unit", "source"],
    )
    for key, (right, wrong) in _outcomes(by_source).items():
        accuracy.add_metric(key, right / (right + wrong))
    error = GaugeMetricFamily(
        "digits_accepted_error_ratio",
        "Share of wrong answers among the accepted, estimated from audits, with the bounds of its 95 % interval (Wilson).",
        labels=["model", "version", "unit", "bound"],
    )
    for key, (right, wrong) in _outcomes(audited).items():
        lower, upper = wilson_interval(wrong, right + wrong)
        for bound, value in (("estimate", wrong / (right + wrong)), ("lower", lower), ("upper", upper)):
            error.add_metric((*key, bound), value)
    return accuracy, error


def _outcomes(counts: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], tuple[float, float]]:
    """Pairs up the counts of right and wrong, the last label of each key, by the labels before it."""
    keys = sorted({key[:-1] for key in counts})
    return {key: (counts.get((*key, "right"), 0.0), counts.get((*key, "wrong"), 0.0)) for key in keys}


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """Computes the 95 % interval of a proportion; accurate near 0 and 1, too.

    Source: E. B. Wilson 1927, JASA 22, 209-212.
    """
    share = successes / trials
    centre = share + _Z * _Z / (2 * trials)
    spread = _Z * (share * (1 - share) / trials + _Z * _Z / (4 * trials * trials)) ** 0.5
    scale = 1 + _Z * _Z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
