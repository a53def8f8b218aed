"""Counts the non-digits that a version accepts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv

from training.non_digits.kinds import Kind

RISK = 0.05  # probability that an upper bound is too low

# Returns probabilities, (N, 10), and the probability that each image shows one whole digit, (N,), for images,
# (N, 28, 28) uint8. The latter is None if the model has no such output.
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def count_accepted(
    predict: Predict, kinds: Sequence[Kind], thresholds: Mapping[str, float], whole_threshold: float
) -> list[dict[str, Any]]:
    """Counts by kind the images that are accepted as digits.

    Args:
        predict: the model.
        kinds: images that show no digit.
        thresholds: the lowest confidence that is accepted, by certified error rate.
        whole_threshold: the lowest probability of one whole digit that is accepted; of no effect without this output.

    Returns:
        One row per kind, with `kind`, `group`, the number of `images`, by error rate the number `accepted` and the `upper`
        bound of their share (Clopper and Pearson, 95 %), and the number `refused_by_whole`.
    """
    rows = []
    for kind in kinds:
        probabilities, whole = predict(kind.images)
        is_whole = np.ones(len(kind.images), bool) if whole is None else whole >= np.float64(whole_threshold)
        confidence = probabilities.max(axis=1).astype(np.float64)
        accepted = {rate: int((is_whole & (confidence >= threshold)).sum()) for rate, threshold in thresholds.items()}
        rows.append(
            {
                "kind": kind.name,
                "group": kind.group,
                "images": len(kind.images),
                "accepted": accepted,
                "upper": {rate: upper_bound(count, len(kind.images)) for rate, count in accepted.items()},
                "refused_by_whole": int((~is_whole).sum()),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Renders rows of `count_accepted` as text: the shares accepted by kind and error rate, and their mean by group."""
    rates = list(rows[0]["accepted"])
    lines = [f"{'kind':40}{'group':14}" + "".join(f"{f'at {float(rate):.1%}':>9}" for rate in rates)]

    def line(kind: str, group: str, shares: Sequence[float]) -> str:
        return f"{kind:40}{group:14}" + "".join(f"{share:9.1%}" for share in shares)

    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        shares = [[row["accepted"][rate] / row["images"] for rate in rates] for row in of_group]
        lines += [line(row["kind"], group, share) for row, share in zip(of_group, shares, strict=True)]
        lines.append(line("mean", group, np.mean(shares, axis=0).tolist()))
    return "\n".join(lines)


def upper_bound(count: int, trials: int) -> float:
    """Returns the exact upper bound of a probability of which `count` of `trials` were seen."""
    return 1.0 if count == trials else float(betaincinv(count + 1, trials - count, 1 - RISK))
