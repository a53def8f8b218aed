"""A measured replica: its points at several rates, and a curve that interpolates between them."""

import bisect
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

COMMITTED = Path(__file__).parents[1] / "capacity.json"

SIMULATED = "fields of five"  # the simulated workload: a sorter wants the whole field


@dataclass(frozen=True)
class Point:
    """A replica at one rate, as medians over the rounds.

    Attributes:
        rate: calls a second that the sender sent.
        answered: share of the calls that were answered, 0 to 1.
        p50_ms, p99_ms: latency of answered calls as the sender sees it, milliseconds.
        in_flight: mean number of requests in work, from the growth of digits_request_seconds_sum.
        in_flight_scraped, in_flight_deviation: mean and standard deviation of scrapes of digits_in_flight_requests.
        in_flight_outside: mean number of calls that the sender waited for: calls a second times their mean time.
        cores: CPU cores that the service used.
        others: CPU cores that other work on the machine used meanwhile; should be 0.
        kept: rounds that met every objective.
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
    """A replica at any rate.

    Attributes:
        answered: calls a second.
        p50_ms, p99_ms: latency of answered calls, milliseconds.
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
    """One workload: a way to call a replica.

    Attributes:
        name: in words.
        rpc: kind of call, as `digits loadtest --rpc` names it.
        images: images in a call.
        sender: program that sent the calls.
        most: answered calls a second of a closed loop, whose clients wait for each answer.
        most_on_one_connection: answered calls a second when that many arrive on one connection, and so at one worker.
        points: sorted by rate.
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
    """A whole measurement.

    Attributes:
        date, machine, cores, python, commit, model: of the measurement.
        rounds: number of measurements of each point.
        seconds: length of each measurement.
        objectives: as `digits loadtest --slo` takes them.
        deadline_seconds: of each call.
        start_seconds: from the start of the process to the first right answer, with all workers.
        memory_mb: memory of all processes after the load, megabytes; shared pages count once.
        ways: the workloads.
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
        """Returns the workload of that name. Raises KeyError."""
        for way in self.ways:
            if way.name == name:
                return way
        raise KeyError(name)

    def curve(self, name: str) -> "Curve":
        """Returns the replica under the workload of that name. Raises KeyError."""
        return Curve(self.way(name).points, self.rounds)


class Curve:
    """A replica at any rate, by linear interpolation between the measured points.

    Below the first point, latency is constant, and requests in flight and cores grow in proportion to the rate. Beyond the
    last point, everything is as at the last point, and the replica refuses the additional calls.

    Attributes:
        points: sorted by rate.
        knee: highest measured rate that met the objectives in most rounds, as did every lower rate.
    """

    def __init__(self, points: Sequence[Point], rounds: int):
        """Sorts the points and finds the knee.

        Raises:
            ValueError: even the lowest rate misses the objectives.
        """
        self.points = sorted(points, key=lambda point: point.rate)
        kept = 0
        while kept < len(self.points) and 2 * self.points[kept].kept > rounds:
            kept += 1
        if not kept:
            raise ValueError("the lowest measured rate misses the objectives: measure lower rates")
        self.knee = self.points[kept - 1]
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
        """Returns the state at a rate, calls a second."""
        after = bisect.bisect_right(self._rates, rate)
        if after == len(self._rates):
            return self._states[-1]
        before = after - 1
        part = (rate - self._rates[before]) / (self._rates[after] - self._rates[before])
        return State(*(a + part * (b - a) for a, b in zip(self._states[before], self._states[after], strict=True)))

    def rate_with(self, *, in_flight: float | None = None, cores: float | None = None) -> float:
        """Returns the lowest rate with `in_flight` requests in flight, or `cores` in use; if none, the last point's rate."""
        for (low, before), (high, after) in itertools.pairwise(zip(self._rates, self._states, strict=True)):
            if in_flight is not None:
                at, first, last = in_flight, before.in_flight, after.in_flight
            else:
                at, first, last = cores or 0.0, before.cores, after.cores
            if first <= at < last:
                return low + (at - first) / (last - first) * (high - low)
        return self._rates[-1]


def read(file: Path) -> Measured:
    """Reads a file that `write` wrote."""
    content: dict[str, Any] = json.loads(file.read_text())
    ways = tuple(Way(**{**way, "points": tuple(Point(**point) for point in way["points"])}) for way in content.pop("ways"))
    return Measured(**content, ways=ways)


def write(measured: Measured, file: Path) -> None:
    """Writes a measurement as JSON, with four significant digits for each number."""
    file.write_text(json.dumps(_rounded(asdict(measured)), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
