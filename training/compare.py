"""Two versions on the same images: which of them reads more right, and whether that may be chance."""

import json
from dataclasses import dataclass

import numpy as np

from training.calibrate import negative_log_likelihood
from training.evaluate import Accepted, Z, accept, judge
from training.verify import Exported, VerificationError


@dataclass(frozen=True)
class Reading:
    """What one of two versions makes of the images.

    Attributes:
        accuracy: share read right.
        alone: how many it reads right, and the other does not.
        negative_log_likelihood: mean of -log p(true digit), nats.
        certified: the error rates that it has a threshold for, the greatest first.
        accepted: what its own threshold lets through, by each error rate that both have certified.
    """

    accuracy: float
    alone: int
    negative_log_likelihood: float
    certified: list[str]
    accepted: dict[str, Accepted]


@dataclass(frozen=True)
class Comparison:
    """An old and a new version on the same images.

    Attributes:
        images: how many.
        old: what the old one makes of them.
        new: what the new one does.
        interval: 95 % interval of the new one's accuracy less the old one's.
    """

    images: int
    old: Reading
    new: Reading
    interval: tuple[float, float]

    @property
    def better(self) -> bool:
        """Whether the new one is shown to read more of such images right."""
        return self.interval[0] > 0

    @property
    def worse(self) -> bool:
        """Whether the new one is shown to read fewer of such images right."""
        return self.interval[1] < 0

    def __str__(self) -> str:
        low, high = self.interval
        difference = (self.new.alone - self.old.alone) / self.images
        verdict = "NEW is better" if self.better else "NEW is worse" if self.worse else "no difference shown"
        return f"accuracy of NEW less OLD {difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}): {verdict}"


def compare(
    probabilities: tuple[np.ndarray, np.ndarray], thresholds: tuple[dict[str, float], dict[str, float]], labels: np.ndarray
) -> Comparison:
    """Judges an old and a new version, in this order, by what they say of the same images.

    Args:
        probabilities: (N, 10) float32 of each.
        thresholds: of each, by the error rate certified.
        labels: (N,) true digits.
    """
    judged = [judge(said, labels) for said in probabilities]
    (_, old_right), (_, new_right) = judged
    only = [int((old_right & ~new_right).sum()), int((new_right & ~old_right).sum())]
    shared = sorted(thresholds[0].keys() & thresholds[1].keys(), key=float, reverse=True)
    old, new = (
        Reading(
            float(right.mean()),
            alone,
            negative_log_likelihood(said, labels),
            sorted(certified, key=float, reverse=True),
            {error: accept(confidence, right, certified[error]) for error in shared},
        )
        for said, (confidence, right), alone, certified in zip(probabilities, judged, only, thresholds, strict=True)
    )
    return Comparison(len(labels), old, new, paired_interval(new.alone, old.alone, len(labels)))


def paired_interval(first: int, second: int, images: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two proportions of the same images: adjusted Wald with Laplace's estimates.

    It takes every image for drawn by itself; where several are in one hand, the true interval is wider.

    Args:
        first: how many images count for the first proportion only.
        second: how many count for the second only.
        images: all of them, those that count for both or neither too.

    Source: Bonett & Price 2012, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
    Data, Journal of Educational and Behavioral Statistics 37, 479-488.
    """
    p, q = (first + 1) / (images + 2), (second + 1) / (images + 2)
    spread = Z * ((p + q - (p - q) ** 2) / (images + 2)) ** 0.5
    return max(p - q - spread, -1.0), min(p - q + spread, 1.0)


def certified_thresholds(exported: Exported) -> dict[str, float]:
    """The thresholds that a model file states, by the error rate certified; none where its training held out no images.

    Raises:
        VerificationError: what it says of itself is not what `digits-train run` writes.
    """
    try:
        stated = json.loads(exported.metadata.get("thresholds", "{}"))
        return {f"{float(error):g}": float(found["threshold"]) for error, found in stated.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"{exported.path} states no thresholds as `digits-train run` does: {error}") from error


def table(comparison: Comparison) -> str:
    """What both make of the images, side by side, as Markdown."""
    columns = [_cells(reading) for reading in (comparison.old, comparison.new)]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    lines = [" | ".join(row) for row in ((f"{comparison.images:,} images", "OLD", "NEW"), ("---", "---:", "---:"), *rows)]
    return "".join(f"| {line} |\n" for line in lines)


def _cells(reading: Reading) -> dict[str, str]:
    accepted = {
        f"accepted, at most {float(error):.1%} errors certified": f"{found.coverage:.2%}, {found.errors:,} wrong"
        for error, found in reading.accepted.items()
    }
    return {
        "accuracy": f"{reading.accuracy:.4f}",
        "right by it alone": f"{reading.alone:,}",
        "negative log-likelihood, nats": f"{reading.negative_log_likelihood:.4f}",
        "certified for": ", ".join(f"{float(error):.1%}" for error in reading.certified) or "nothing: all is rejected",
        **accepted,
    }
