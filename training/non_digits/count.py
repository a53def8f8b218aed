"""Counts the non-digits that a version accepts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from training.certify import upper_bound
from training.exported import Decisions
from training.non_digits.groups import by_group
from training.non_digits.kinds import Kind

BOUND_RISK = 0.05  # probability that an upper bound is too low


def count_accepted(
    decide: Callable[[np.ndarray], Decisions], kinds: Sequence[Kind], thresholds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Counts by kind the images that are accepted as digits.

    Args:
        decide: the model's answers to images, (N, 28, 28) uint8.
        kinds: images that show no digit.
        thresholds: the lowest confidence that is accepted, by certified error rate.

    Returns:
        One row per kind, with `kind`, `group`, the number of `images`, by error rate the number `accepted` and the `upper`
        bound of their share (Clopper and Pearson, 95 %), and the number `refused_by_whole`.
    """
    rows = []
    for kind in kinds:
        _, confidence, whole = decide(kind.images)
        accepted = {rate: int((confidence >= np.float64(threshold)).sum()) for rate, threshold in thresholds.items()}
        rows.append(
            {
                "kind": kind.name,
                "group": kind.group,
                "images": len(kind.images),
                "accepted": accepted,
                "upper": {rate: upper_bound(count, len(kind.images), BOUND_RISK) for rate, count in accepted.items()},
                "refused_by_whole": int((~whole).sum()),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Renders rows of `count_accepted` as text: the shares accepted by kind and error rate, and their mean by group."""
    rates = list(rows[0]["accepted"])
    lines = [f"{'kind':40}{'group':14}" + "".join(f"{f'at {float(rate):.1%}':>9}" for rate in rates)]

    def line(kind: str, group: str, shares: Sequence[float]) -> str:
        return f"{kind:40}{group:14}" + "".join(f"{share:9.1%}" for share in shares)

    for group in by_group(rows):
        lines += [
            line(row["kind"], row["group"], [row["accepted"][rate] / row["images"] for rate in rates])
            for row in group["rows"]
        ]
        lines.append(line("mean", group["group"], [group["mean"][rate] for rate in rates]))
    return "\n".join(lines)
