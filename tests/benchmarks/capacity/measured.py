"""What was measured of a replica, and what it does at the rates in between."""

import bisect
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.deploy.manifests import DEPLOY

COMMITTED = DEPLOY / "capacity.json"

SIMULATED = "fields of five"  # the way to call that is simulated: what a sorter wants to know is the field


@dataclass(frozen=True)
class Point:
    """A replica at one rate: medians over the rounds.

    Attributes:
        rate: calls a second that came.
        answered: share of them that were answered.
        p50_ms, p99_ms: of those, as their sender sees them.
        in_flight: requests that the service had in work, on average over the time: the growth of digits_request_seconds_sum.
        in_flight_scraped, in_flight_deviation: mean and standard deviation of digits_in_flight_requests in some scrapes.
        in_flight_outside: calls that the sender waited for, on average: their number a second times their mean time.
        cores: that the service took.
        others: cores that the machine's other work took meanwhile, which should be none.
        kept: rounds in which every objective was.
    """

    rate: float
    answered: float
    p50_ms: float
    p99_ms: float
    in_flight: float
    in_flight_scraped: float
    in_flight_deviation: float
    in_flight_outside: float
    cores: float
    others: float
    kept: int


class State(NamedTuple):
    """A replica at some rate.

    Attributes:
        answered: calls a second.
        p50_ms, p99_ms: of them.
        in_flight, in_flight_deviation, cores: as in Point.
    """

    answered: float
    p50_ms: float
    p99_ms: float
    in_flight: float
    in_flight_deviation: float
    cores: float


@dataclass(frozen=True)
class Way:
    """One way to call a replica.

    Attributes:
        name: in words.
        rpc: what is called.
        images: in a call.
        sender: what sent.
        most: calls a second of a closed loop: it takes what it gets.
        most_on_one_connection: calls a second that are answered of as many, where all come on one connection, which is one
            worker's.
        points: by rate.
    """

    name: str
    rpc: str
    images: int
    sender: str
    most: float
    most_on_one_connection: float
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Measured:
    """All that was measured, and where.

    Attributes:
        date, machine, cores, python, commit, model: what of, and when.
        rounds, seconds: of each point.
        objectives: that a rate must keep, as `digits loadtest --slo` takes them.
        deadline_seconds: of each call.
        start_seconds: from nothing to the first right answer, all workers.
        memory_mb: of all its processes, after the load; what they share is counted once.
        ways: how it was called.
    """

    date: str
    machine: str
    cores: int
    python: str
    commit: str
    model: str
    rounds: int
    seconds: float
    objectives: str
    deadline_seconds: float
    start_seconds: float
    memory_mb: float
    ways: tuple[Way, ...]

    def way(self, name: str) -> Way:
        """The one of that name. Raises KeyError."""
        for way in self.ways:
            if way.name == name:
                return way
        raise KeyError(name)

    def curve(self, name: str) -> "Curve":
        """A replica that is called in that way."""
        return Curve(self.way(name).points, self.rounds)


class Curve:
    """A replica at any rate: straight lines between the points that were measured.

    Below the first of them latency is that of the first, and requests in flight and cores grow in proportion. Beyond the
    last it answers as many as there, as late, with as many in flight; the others are refused.
    """

    def __init__(self, points: Sequence[Point], rounds: int):
        """Needs one point at least that keeps the objectives, with all before it."""
        self.points = sorted(points, key=lambda point: point.rate)
        kept = 0
        while kept < len(self.points) and 2 * self.points[kept].kept > rounds:
            kept += 1
        if not kept:
            raise ValueError("the lowest rate that was measured breaks the objectives: measure lower ones")
        self.knee = self.points[kept - 1]
        """The highest rate measured that keeps the objectives in most rounds, as do all below it."""
        first = self.points[0]
        self._rates = [0.0, *(point.rate for point in self.points)]
        self._states = [
            State(0.0, first.p50_ms, first.p99_ms, 0.0, 0.0, 0.0),
            *(
                State(
                    point.rate * point.answered,
                    point.p50_ms,
                    point.p99_ms,
                    point.in_flight,
                    point.in_flight_deviation,
                    point.cores,
                )
                for point in self.points
            ),
        ]

    def at(self, rate: float) -> State:
        """What it does at a rate, calls a second."""
        after = bisect.bisect_right(self._rates, rate)
        if after == len(self._rates):
            return self._states[-1]
        before = after - 1
        part = (rate - self._rates[before]) / (self._rates[after] - self._rates[before])
        return State(*(a + part * (b - a) for a, b in zip(self._states[before], self._states[after], strict=True)))

    def rate_with(self, *, in_flight: float | None = None, cores: float | None = None) -> float:
        """The lowest rate at which so many requests are in flight, or cores are taken; that of the last point if at none."""
        for (low, before), (high, after) in itertools.pairwise(zip(self._rates, self._states, strict=True)):
            if in_flight is not None:
                at, first, last = in_flight, before.in_flight, after.in_flight
            else:
                at, first, last = cores or 0.0, before.cores, after.cores
            if first <= at < last:
                return low + (at - first) / (last - first) * (high - low)
        return self._rates[-1]


def read(file: Path) -> Measured:
    """What was measured, from a file that `write` wrote."""
    content: dict[str, Any] = json.loads(file.read_text())
    ways = tuple(Way(**{**way, "points": tuple(Point(**point) for point in way["points"])}) for way in content.pop("ways"))
    return Measured(**content, ways=ways)


def write(measured: Measured, file: Path) -> None:
    """Keeps it, four digits of each number."""
    file.write_text(json.dumps(_rounded(asdict(measured)), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
