"""Groups of kinds of non-digits, and what a version accepts of each."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Group = Literal["held_out", "trained", "digit_shaped"]
GROUPS: Mapping[Group, str] = {
    "held_out": "kinds that training never makes",
    "trained": "kinds that training makes too, in another way",
    "digit_shaped": "kinds that have the shape of a digit",
}


def by_group(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups the rows of `count.count_accepted`, in the order of `GROUPS`.

    Returns:
        For each group that has rows: "group", its "name" in words, its "rows", and by target error rate the "mean" share
        accepted over its kinds and the "worst" kind's row.
    """
    groups = []
    for group, name in GROUPS.items():
        members = [row for row in rows if row["group"] == group]
        if members:
            shares = {rate: [row["accepted"][rate] / row["images"] for row in members] for rate in members[0]["accepted"]}
            groups.append(
                {
                    "group": group,
                    "name": name,
                    "rows": members,
                    "mean": {rate: sum(values) / len(values) for rate, values in shares.items()},
                    "worst": {rate: members[values.index(max(values))] for rate, values in shares.items()},
                }
            )
    return groups
