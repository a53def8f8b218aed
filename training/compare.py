"""Compares two versions on the same images and tests if the difference in accuracy is significant."""

import json
from dataclasses import dataclass

import numpy as np

from training.calibrate import negative_log_likelihood
from training.evaluate import Accepted, Z, accept, score
from training.exported import Decisions, Exported, VerificationError


@dataclass(frozen=True)
class Result:
    """Results of one version.

    Attributes:
        accuracy: share of correct answers.
        alone: number of images that only this version classifies correctly.
        negative_log_likelihood: mean of -log p(true digit), nats.
        certified: error rates for which the version has a threshold, in descending order.
        accepted: effect of its own threshold, by each error rate that both versions have certified.
    """

    accuracy: float
    alone: int
    negative_log_likelihood: float
    certified: list[str]
    accepted: dict[str, Accepted]


@dataclass(frozen=True)
class Comparison:
    """Results of an old and a new version on the same images.

    Attributes:
        images: number of images.
        old: results of the old version.
        new: results of the new version.
        interval: 95 % interval of the new version's accuracy minus the old version's.
    """

    images: int
    old: Result
    new: Result
    interval: tuple[float, float]

    @property
    def better(self) -> bool:
        """True if the new version is significantly more accurate on such images."""
        return self.interval[0] > 0

    @property
    def worse(self) -> bool:
        """True if the new version is significantly less accurate on such images."""
        return self.interval[1] < 0

    def __str__(self) -> str:
        low, high = self.interval
        difference = (self.new.alone - self.old.alone) / self.images
        verdict = "NEW is better" if self.better else "NEW is worse" if self.worse else "no difference shown"
        return f"accuracy of NEW less OLD {difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}): {verdict}"


def compare(
    decisions: tuple[Decisions, Decisions], thresholds: tuple[dict[str, float], dict[str, float]], labels: np.ndarray
) -> Comparison:
    """Compares the answers of an old and a new version, in this order.

    Accuracy counts all answers. An answer that a version refuses as no whole digit is accepted at no threshold.

    Args:
        decisions: of each version.
        thresholds: thresholds of each version, by certified error rate.
        labels: (N,) true digits.
    """
    old_correct, new_correct = (score(decided.probabilities, labels)[1] for decided in decisions)
    only = [int((old_correct & ~new_correct).sum()), int((new_correct & ~old_correct).sum())]
    shared = sorted(thresholds[0].keys() & thresholds[1].keys(), key=float, reverse=True)
    old, new = (
        Result(
            float(correct.mean()),
            alone,
            negative_log_likelihood(decided.probabilities, labels),
            sorted(certified, key=float, reverse=True),
            {error: accept(decided.confidence, correct, certified[error]) for error in shared},
        )
        for decided, correct, alone, certified in zip(decisions, (old_correct, new_correct), only, thresholds, strict=True)
    )
    return Comparison(len(labels), old, new, paired_interval(new.alone, old.alone, len(labels)))


def paired_interval(first: int, second: int, images: int) -> tuple[float, float]:
    """Returns the 95 % adjusted Wald interval of the difference of two proportions of the same images.

    The interval treats images as independent; if several come from one writer, the true interval is wider.

    Args:
        first: number of images that count for the first proportion only.
        second: number of images that count for the second only.
        images: number of all images, including images that count for both or neither.

    Source: Bonett & Price 2012, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
    Data, Journal of Educational and Behavioral Statistics 37, 479-488. Laplace estimates replace the observed proportions.
    """
    p, q = (first + 1) / (images + 2), (second + 1) / (images + 2)
    spread = Z * ((p + q - (p - q) ** 2) / (images + 2)) ** 0.5
    return max(p - q - spread, -1.0), min(p - q + spread, 1.0)


def certified_thresholds(exported: Exported) -> dict[str, float]:
    """Returns a model file's thresholds by certified error rate; empty if its training held out no images.

    Raises:
        VerificationError: the thresholds in its metadata are not in the form that `digits-train run` writes.
    """
    try:
        thresholds = json.loads(exported.metadata.get("thresholds", "{}"))
        return {f"{float(error):g}": float(found["threshold"]) for error, found in thresholds.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"{exported.path}: thresholds are not in the form of `digits-train run`: {error}") from error


def table(comparison: Comparison) -> str:
    """Formats the results of both versions side by side, as a Markdown table."""
    columns = [_cells(result) for result in (comparison.old, comparison.new)]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    lines = [" | ".join(row) for row in ((f"{comparison.images:,} images", "OLD", "NEW"), ("---", "---:", "---:"), *rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _cells(result: Result) -> dict[str, str]:
    accepted = {
        f"accepted, at most {float(error):.1%} errors certified": f"{found.coverage:.2%}, {found.errors:,} wrong"
        for error, found in result.accepted.items()
    }
    return {
        "accuracy": f"{result.accuracy:.4f}",
        "correct by this version alone": f"{result.alone:,}",
        "negative log-likelihood, nats": f"{result.negative_log_likelihood:.4f}",
        "certified for": ", ".join(f"{float(error):.1%}" for error in result.certified) or "nothing: all is rejected",
        **accepted,
    }
