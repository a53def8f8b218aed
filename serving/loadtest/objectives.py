"""Service level objectives: `p99=20ms,errors=0.1%`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.loadtest.tally import Tally

_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class ObjectiveError(ValueError):
    """The text is not an objective. The message gives an example."""


@dataclass(frozen=True)
class Objective:
    """One objective: a percentile of the latency, or the share of errors, must not exceed a limit.

    Attributes:
        percentile: percentile of the latency, from 0 to 100; None for the share of calls without a right answer.
        limit: the limit, in milliseconds or as a share.
    """

    percentile: float | None
    limit: float

    def __str__(self) -> str:
        return f"errors={self.limit * 100:g}%" if self.percentile is None else f"p{self.percentile:g}={self.limit:g}ms"

    def broken(self, tally: "Tally") -> str | None:
        """Describes how the tally misses the objective. Returns None if it is kept."""
        if not tally.codes["OK"]:
            return f"{self}, and no call was answered"
        found = tally.errors if self.percentile is None else tally.milliseconds(self.percentile)
        if found <= self.limit:
            return None
        return f"{self}, is {found * 100:.3g}%" if self.percentile is None else f"{self}, is {found:g}ms"


def broken(objectives: Sequence[Objective], tally: "Tally") -> list[str]:
    """Describes the objectives that the tally misses."""
    return [description for one in objectives if (description := one.broken(tally))]


def parse(text: str) -> list[Objective]:
    """Parses objectives separated by commas. Raises ObjectiveError."""
    return [_parse(one.strip()) for one in text.split(",")]


def _parse(text: str) -> Objective:
    if found := re.fullmatch(r"p(?!0+(?:\.0*)?=)(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(us|ms|s)", text):
        return Objective(float(found[1]), float(found[2]) * _UNITS[found[3]])
    if found := re.fullmatch(r"errors=(\d+(?:\.\d+)?)(%?)", text):
        limit = float(found[1]) / (100 if found[2] else 1)
        if limit <= 1:
            return Objective(None, limit)
    raise ObjectiveError(f"{text!r} is not an objective, expected for example p99=20ms or errors=0.1%")
