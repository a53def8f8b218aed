"""The results of a load test as a table, as JSON, and as a picture."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.loadtest.confidence import CONFIDENCE, calls_needed, confidence
from serving.loadtest.knee import Step
from serving.loadtest.lateness import WINDOW_SECONDS
from serving.loadtest.objectives import Objective
from serving.loadtest.plan import Plan
from serving.loadtest.tally import Tally

PERCENTILES = (50.0, 90.0, 99.0, 99.9)

_MAX_LATE_SHARE = 0.3  # of the latency, that the sender's own delay may make up


def figures(plan: Plan, tally: Tally) -> dict[str, Any]:
    """Returns all numbers of one measurement, for JSON."""
    return {
        **asdict(plan),
        "calls": tally.calls,
        "codes": dict(tally.codes),
        "wrong": tally.wrong,
        "windows": tally.windows,
        "late_windows": tally.late_windows,
        "discarded": tally.discarded,
        "errors": tally.errors,
        "calls_per_second": tally.answered / plan.seconds,
        "images_per_second": tally.answered * plan.images / plan.seconds,
        "milliseconds": {f"p{percentile:g}": tally.milliseconds(percentile) for percentile in PERCENTILES}
        | {"max": tally.milliseconds(100), "mean": tally.microseconds.get_mean_value() / 1000},
        "sent_late_milliseconds": {f"p{percentile:g}": tally.late_milliseconds(percentile) for percentile in PERCENTILES},
    }


def confidences(slo: Sequence[Objective], tally: Tally) -> list[dict[str, Any]]:
    """Returns the confidence in each percentile of `slo` that the tally keeps, as numbers and as text, for JSON."""
    found, calls = [], tally.codes["OK"]
    for one in slo:
        if one.percentile is None or one.broken(tally):
            continue
        late = tally.slower_than(one.limit)
        sure = confidence(calls, late, one.percentile)
        more = max(0, calls_needed(late, one.percentile) - calls)
        text = f"{one}: {_floored(sure * 100)} % confidence ({late:,} of {calls:,} calls later)"
        if more:
            text += f"; {CONFIDENCE * 100:g} % needs {more:,} more {'call' if more == 1 else 'calls'}, not later"
        found.append(
            {"objective": str(one), "calls": calls, "late": late, "confidence": sure, "calls_missing": more, "text": text}
        )
    return found


def _floored(percent: float) -> str:
    """Formats a percentage with two decimals, rounded down: 100 % would be a promise."""
    return f"{math.floor(percent * 100) / 100:.2f}"


def sender_too_slow(tally: Tally) -> str:
    """Returns a warning if the sender itself caused much of the latency, otherwise ""."""
    if unsent := tally.codes["UNSENT"]:
        return f"{unsent:,} of {tally.calls:,} calls were never sent: a process of this test had too many calls in flight"
    if tally.sender_late:
        windows = f"{tally.late_windows:,} of {tally.windows:,} windows of {WINDOW_SECONDS:g} s"
        return f"the sender is too slow: it was late in {windows}, too many to discard them, so all calls are counted"
    late, latency = tally.late_milliseconds(99), tally.milliseconds(99)
    if tally.codes["OK"] < 100 or late < _MAX_LATE_SHARE * latency:
        return ""
    return f"the sender is too slow: 1 % of the calls were sent {late:.1f} ms late or later, and p99 is {latency:.1f} ms"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats measurements as a Markdown table, one row each."""
    lines = [
        "| load | calls/s | images/s | p50 ms | p90 ms | p99 ms | p99.9 ms | max ms | late windows | not OK | wrong |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---|---:|",
    ]
    for row in rows:
        load = f"{row['callers']} callers" if row["callers"] else f"{row['rate']:,.0f} a second"
        times = (row["milliseconds"][name] for name in ("p50", "p90", "p99", "p99.9", "max"))
        failed = ", ".join(f"{count:,} {code}" for code, count in sorted(row["codes"].items()) if code != "OK") or "-"
        cells = (
            load,
            f"{row['calls_per_second']:,.0f}",
            f"{row['images_per_second']:,.0f}",
            *(f"{time:,.2f}" for time in times),
            f"{row['late_windows']:,} of {row['windows']:,}",
        )
        lines.append(f"| {' | '.join((*cells, failed, str(row['wrong'])))} |")
    return "\n".join(lines)


def draw(steps: Sequence[Step], images_per_call: int, file: Path) -> None:
    """Draws latency against throughput into a PNG file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    ordered = sorted(steps, key=lambda one: one.rate)
    throughput = [one.answered * images_per_call for one in ordered]
    for percentile in (50.0, 99.0):
        times = [one.tally.milliseconds(percentile) for one in ordered]
        axes.plot(throughput, times, marker="o", label=f"p{percentile:g}")
    broken = [one for one in ordered if one.broken]
    axes.plot(
        [one.answered * images_per_call for one in broken],
        [one.tally.milliseconds(99.0) for one in broken],
        linestyle="none",
        marker="x",
        markersize=12,
        label="an objective is missed",
    )
    axes.set(xlabel="images answered per second", ylabel="milliseconds", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png")
    pyplot.close(figure)
