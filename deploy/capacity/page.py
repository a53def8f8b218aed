"""Generates the tables of deploy/CAPACITY.md from a measurement. A test compares the page with them."""

import itertools
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.capacity.fleet import ZONES
from deploy.capacity.hpa import POD_CORES, Autoscaling
from deploy.capacity.measured import SIMULATED, Curve, Measured, Way
from deploy.capacity.scenarios import BUSY, DAY, RAMP_SECONDS, Result, Scenario, Simulations

PAGE = Path(__file__).parents[1] / "CAPACITY.md"

PIECES_AN_HOUR = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
FIELD_LENGTH = 5
PEAK = 1.5  # load of the busiest minute over the mean of its hour
SHARES = (0.5, BUSY, 0.8)  # of the calls a second at the knee
STEP_FACTORS = (2.0, 7.0)
ZONE_PODS = 6
_SHOWN_SECONDS = (0, 15, 30, 45, 60, 90, 120, 180, 300, 600, 1200)  # after the step


def pods_for(rate: float, curve: Curve) -> int:
    """Returns the pods for a rate: each at its planned load or below, and below the knee after the loss of a zone."""
    pods = max(ZONES, math.ceil(rate / (BUSY * curve.knee.rate)))
    while (pods - math.ceil(pods / ZONES)) * curve.knee.rate < rate:
        pods += 1
    return pods


def tables(measured: Measured, autoscaling: Autoscaling) -> dict[str, str]:
    """Returns all tables in Markdown, by the name in the page's `<!-- table: NAME -->`."""
    simulations = Simulations(measured, autoscaling)
    return {
        "measured": _measured(measured),
        "curve": _curve(measured.way(SIMULATED)),
        "ways": _ways(measured),
        "pieces": _pieces(measured),
        "in_flight": _in_flight(measured, autoscaling),
        "targets": _targets(measured, autoscaling),
        "scenarios": _scenarios(simulations),
        "step": _step(simulations),
        "day": _day(simulations),
        "connections": _connections(),
    }


def fill(page: str, made: dict[str, str]) -> str:
    """Returns the page with every table replaced.

    Raises:
        ValueError: the page lacks a table, or has an unknown one.
    """
    names = re.findall(r"<!-- table: (\w+) -->", page)
    if sorted(names) != sorted(made):
        raise ValueError(f"the page has tables {sorted(names)}, expected {sorted(made)}")
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{made[match[2]]}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    align = ("---" if column < left else "---:" for column in range(len(head)))
    return "\n".join((_cells(head), f"|{'|'.join(align)}|", *map(_cells, rows)))


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(share: float) -> str:
    """Formats a share in percent. 99.9996 % never becomes 100 %."""
    return f"{100 * share:.0f} %" if share < 0.99 else f"{math.floor(100_000 * share + 1e-6) / 1000:g} %"


def _measured(measured: Measured) -> str:
    others = [point.others for way in measured.ways for point in way.points]
    return (
        f"Measured on {measured.date} at commit {measured.commit}: {measured.cores} cores of {measured.machine}, Python\n"
        f"{measured.python}, {measured.model}, `digits serve` with default settings. Medians of {measured.rounds} rounds\n"
        f"of {measured.seconds:g} s. Objectives: {measured.objectives}. Deadline of each call: "
        f"{measured.deadline_seconds:g} s.\nFrom the start of the process to the first right answer: "
        f"{measured.start_seconds:.1f} s. Memory of all processes after the load: {measured.memory_mb:.0f} MB.\n"
        f"Meanwhile other work on the machine used {statistics.median(others):.2f} cores (median), and "
        f"{max(others):.2f} at most."
    )


def _curve(way: Way) -> str:
    rows = [
        (
            f"{point.rate:,.0f}",
            _share(point.answered),
            f"{point.rate * point.answered:,.0f}",
            f"{point.p50_ms:.1f}",
            f"{point.p99_ms:.1f}",
            f"{point.in_flight:.1f}",
            f"{point.in_flight_scraped:.1f} ± {point.in_flight_deviation:.1f}",
            f"{point.in_flight_outside:.1f}",
            f"{point.cores:.2f}",
            str(point.kept),
        )
        for point in way.points
    ]
    head = ("calls/s", "answered", "answers/s", "p50 ms", "p99 ms", "in flight", "scraped", "outside", "cores")
    return _table((*head, "rounds within objectives"), rows, left=0)


def _ways(measured: Measured) -> str:
    rows = []
    for way in measured.ways:
        knee = measured.curve(way.name).knee
        rows.append(
            (
                way.name,
                f"{way.images}",
                f"{knee.rate:,.0f}",
                f"{knee.rate * way.images:,.0f}",
                f"{knee.p50_ms:.1f}",
                f"{knee.p99_ms:.1f}",
                f"{knee.in_flight:.1f}",
                f"{1e6 * knee.cores / knee.rate / way.images:,.0f}",
                f"{way.most:,.0f}",
                f"{way.most_on_one_connection:,.0f}",
                way.sender,
            )
        )
    head = ("workload", "images a call", "knee, calls/s", "images/s", "p50 ms", "p99 ms", "in flight", "CPU an image, µs")
    return _table((*head, "closed loop, calls/s", "one connection", "sent by"), rows)


def _pieces(measured: Measured) -> str:
    rows = []
    for pieces in PIECES_AN_HOUR:
        fields = pieces / 3600 * PEAK
        cells = []
        for way in measured.ways:
            curve = measured.curve(way.name)
            calls = fields * FIELD_LENGTH / way.images
            cells.append(f"{calls / curve.knee.rate:.2f} → {pods_for(calls, curve)}")
        rows.append((f"{pieces:,}", f"{pieces / 3600:,.1f}", f"{fields:,.1f}", *cells))
    return _table(("pieces an hour", "fields/s", "busiest minute", *(way.name for way in measured.ways)), rows, left=0)


def _in_flight(measured: Measured, autoscaling: Autoscaling) -> str:
    """Shows requests in flight at shares of the knee, and the share at which the target is reached."""
    target = autoscaling.in_flight or 0.0
    rows = []
    for way in measured.ways:
        curve = measured.curve(way.name)
        states = (curve.at(share * curve.knee.rate) for share in (*SHARES, 1.0))
        share = curve.rate_with(in_flight=target) / curve.knee.rate
        rows.append((way.name, *(f"{state.in_flight:.1f}" for state in states), f"{share:.0%}"))
    head = (*(f"at {share:.0%} of the knee" for share in SHARES), "at the knee", f"{target:g} in flight at")
    return _table(("workload", *head), rows)


def _targets(measured: Measured, autoscaling: Autoscaling) -> str:
    """Compares autoscalers that scale by different metrics."""
    knee = round(BUSY * measured.curve(SIMULATED).knee.in_flight)
    alone = replace(autoscaling, in_flight=None, cores=BUSY * POD_CORES)
    both = replace(alone, in_flight=float(knee))
    compared = (
        (f"{autoscaling.in_flight:g} in flight", autoscaling, False),
        (f"{autoscaling.in_flight:g} in flight, by the gauge", autoscaling, True),
        (f"{knee} in flight ({BUSY:.0%} of those at the knee)", replace(autoscaling, in_flight=float(knee)), False),
        (f"{BUSY:.0%} CPU", alone, False),
        (f"{BUSY:.0%} CPU and {knee} in flight", both, False),
    )
    rows = []
    for name, one, gauge in compared:
        simulations = Simulations(measured, one, gauge=gauge)
        day = simulations.run(simulations.day())
        changes = sum(before.pods != after.pods for before, after in itertools.pairwise(day.run.moments))
        ramp = simulations.run(simulations.ramp(STEP_FACTORS[1], RAMP_SECONDS))
        steps = (_recovered(simulations.run(simulations.step(factor))) for factor in STEP_FACTORS)
        of_day = (f"{changes}", f"{day.run.pod_hours:.0f}", f"{day.outside_seconds:.0f}")
        rows.append((name, *of_day, f"{ramp.outside_seconds:.0f}", *steps))
    ramp_head = f"{STEP_FACTORS[1]:g} times in {RAMP_SECONDS / 60:g} minutes: outside, s"
    head = ("scales by", "a day: changes", "pod-hours", "outside, s", ramp_head)
    return _table((*head, *(f"{factor:g} times at once: recovered after s" for factor in STEP_FACTORS)), rows)


def _recovered(result: Result) -> str:
    return "never" if result.recovered_seconds is None else f"{result.recovered_seconds:,.0f}"


def _row(result: Result, note: str = "") -> tuple[str, ...]:
    run = result.run
    worst = max(moment.p99_ms for moment in run.moments)
    return (
        result.scenario.name + note,
        str(result.min_replicas),
        _share(run.answered / run.offered),
        f"{worst:.0f}",
        f"{result.outside_seconds:,.0f}",
        _recovered(result),
        str(run.most_pods),
        f"{run.pod_hours:.1f}",
    )


def compared(simulations: Simulations) -> Iterator[tuple[Scenario, bool]]:
    """Yields the scenarios of the page; True also looks for the headroom that meets the objectives."""
    small, large = (simulations.step(factor) for factor in STEP_FACTORS)
    yield simulations.steady(), False
    yield small, True
    yield from ((simulations.ramp(STEP_FACTORS[1], RAMP_SECONDS), True), (simulations.day(), True), (large, True))
    yield simulations.retried(large), False
    yield simulations.scheduled(large, simulations.autoscaling.max_replicas), False
    yield simulations.balanced_by_clients(small), False
    zone = simulations.zone(ZONE_PODS)
    yield zone, True
    yield simulations.balanced_by_clients(zone), False


def _scenarios(simulations: Simulations) -> str:
    rows = []
    for scenario, headroom in compared(simulations):
        result = simulations.run(scenario)
        rows.append(_row(result))
        if headroom and not simulations.meets_objectives(result):
            kept = simulations.with_headroom(scenario)
            rows.append(
                _row(kept, ", with headroom") if kept else (scenario.name, "no number suffices", *["" for _ in range(6)])
            )
    head = (
        "load",
        "minimum of pods",
        "answered",
        "worst p99 ms",
        "outside, s",
        "recovered after s",
        "most pods",
        "pod-hours",
    )
    return _table(head, rows)


def _step(simulations: Simulations) -> str:
    scenario = simulations.step(STEP_FACTORS[1])
    moments = {moment.at: moment for moment in simulations.run(scenario).run.moments}
    rows = []
    for after in _SHOWN_SECONDS:
        moment = moments.get(scenario.begins + after)
        if moment:
            share = moment.answered / moment.sent
            rows.append((f"{after:,}", _share(share), f"{moment.p99_ms:.0f}", str(moment.ready), str(moment.pods)))
    return _table(("s after the step", "answered", "p99 ms", "pods ready", "pods wanted"), rows, left=0)


def _day(simulations: Simulations) -> str:
    result = simulations.run(simulations.day())
    rows = []
    for hour in range(0, len(DAY), 2):
        moments = [one for one in result.run.moments if hour <= one.at / 3600 < hour + 2]
        calls = sum(one.offered for one in moments) / len(moments) / result.run.step
        answered = sum(one.answered for one in moments) / sum(one.offered for one in moments)
        pods = [one.pods for one in moments]
        worst = max(one.p99_ms for one in moments)
        hours = f"{hour:02d} to {hour + 2:02d}"
        rows.append((hours, f"{calls:,.0f}", _share(answered), f"{worst:.0f}", f"{min(pods)} to {max(pods)}"))
    return _table(("hours", "calls/s", "answered", "worst p99 ms", "pods"), rows)


def _connections() -> str:
    """Shows how unevenly a layer 4 balancer, which balances connections, spreads calls."""
    chance = np.random.default_rng(0)
    rows = []
    for connections in (4, 8, 16, 32, 64, 256):
        cells = []
        for backends in (2, 3, 6, 12):
            drawn = chance.multinomial(connections, [1 / backends] * backends, size=20_000)
            cells.append(f"{drawn.max(axis=1).mean() / connections * backends:.1f}")
        rows.append((str(connections), *cells))
    return _table(("connections", "2 workers", "3 pods", "6 pods", "12 pods"), rows, left=0)
