"""`digits loadtest`: runs the measurements, and prints the results."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from serving.loadtest import objectives, processes, report
from serving.loadtest.knee import Step, find_knee, judge
from serving.loadtest.plan import Plan
from serving.loadtest.tally import Tally
from serving.loadtest.target import Target

MISSED = 3  # exit status if an objective is missed
FIRST_RATE = 100.0  # calls per second, default for the search of the knee

_RECOVERY_SECONDS = 2.0  # pause for the service after a rate far above its capacity

Measure = Callable[[Plan], Tally]


def run(plan: Plan, target: Target, options: argparse.Namespace) -> int:
    """Runs the measurements that `options` ask for. Returns the exit status, as documented in --help."""
    try:
        with _progress_bar(plan, shown=sys.stderr.isatty()) as report_progress:

            def measure(one: Plan) -> Tally:
                return processes.measure(one, target, options.processes, report_progress)

            carry_out = _find_knee if options.find_knee else _measure
            status, text, numbers = carry_out(plan, options.slo, measure, options.png)
        print(text)
        if options.json:
            setting = {"address": target.address, "processes": options.processes}
            options.json.write_text(json.dumps({**setting, **numbers}, indent=2) + "\n")
        return status
    except (processes.LoadTestError, OSError) as error:
        print(f"digits loadtest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("digits loadtest: interrupted", file=sys.stderr)
        return 1


def _measure(
    plan: Plan, slo: list[objectives.Objective], measure: Measure, _: Path | None
) -> tuple[int, str, dict[str, Any]]:
    """Measures one rate. Returns the exit status, the text to print, and the numbers."""
    tally = measure(plan)
    numbers = report.figures(plan, tally)
    _warn(tally)
    missed = objectives.broken(slo, tally)
    table = report.table([numbers])
    sure = report.confidences(slo, tally)
    text = "\n".join([table, *(f"missed: {one}" for one in missed), *(one["text"] for one in sure)])
    if not tally.codes["OK"]:
        raise processes.LoadTestError(f"no call was answered\n{text}")
    if missed and tally.sender_late:
        raise processes.LoadTestError(f"the sender was late too often to judge the service by: {'; '.join(missed)}\n{table}")
    return MISSED if missed else 0, text, {**numbers, "missed": missed, "confidence": sure}


def _find_knee(
    plan: Plan, slo: list[objectives.Objective], measure: Measure, png: Path | None
) -> tuple[int, str, dict[str, Any]]:
    """Measures rising rates. Returns the exit status, the text to print, and the numbers."""
    first_rate = plan.rate or FIRST_RATE

    def carry_out(rate: float) -> Step:
        at_rate = replace(plan, rate=rate)
        try:
            tally = measure(at_rate)
        except processes.LoadTestError:
            if rate == first_rate:
                raise
            time.sleep(_RECOVERY_SECONDS)
            tally = measure(at_rate)
        one = judge(rate, tally, plan.seconds, slo)
        verdict = "the sender was late" if one.sender_late else "; ".join(one.broken) or "kept"
        print(f"{rate:10,.0f} calls a second: {verdict}", file=sys.stderr, flush=True)
        _warn(one.tally)
        return one

    best, steps = find_knee(carry_out, first_rate)
    if best is None and steps[0].sender_late:
        raise processes.LoadTestError(f"at {steps[0].rate:,.0f} calls a second the sender was late too often, see above")
    if png:
        report.draw(steps, plan.images, png)
    rows = [
        {
            **report.figures(replace(plan, rate=one.rate), one.tally),
            "missed": list(one.broken),
            "confidence": report.confidences(slo, one.tally),
        }
        for one in sorted(steps, key=lambda one: one.rate)
    ]
    knee = {"calls_per_second": best.rate, "images_per_second": best.rate * plan.images} if best else None
    named = ", ".join(map(str, slo))
    if best:
        line = f"the knee: {best.rate:,.0f} calls a second, {best.rate * plan.images:,.0f} images, keep {named}"
        if steps[-1].sender_late:
            line += f"; it may lie higher: at {steps[-1].rate:,.0f} calls a second the sender was late too often"
        line = "\n".join([line, *(one["text"] for one in report.confidences(slo, best.tally))])
    else:
        line = f"the first rate, {steps[0].rate:,.0f} calls a second, misses: {'; '.join(steps[0].broken)}"
    numbers = {"slo": named, "knee": knee, "steps": rows}
    return 0 if best else MISSED, f"{report.table(rows)}\n{line}", numbers


def _warn(tally: Tally) -> None:
    if warning := report.sender_too_slow(tally):
        print(f"digits loadtest: {warning}; more --processes, or another machine, may help", file=sys.stderr, flush=True)


@contextmanager
def _progress_bar(plan: Plan, *, shown: bool) -> Iterator[Callable[[processes.Progress], None]]:
    """Shows a progress bar with the rate and the p99 of the last half second."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]} calls/s  p99 {task.fields[p99]} ms"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("warm-up", total=plan.warmup_seconds + plan.seconds, rate="-", p99="-")

        def report_progress(now: processes.Progress) -> None:
            progress.update(
                task,
                description="measuring" if now.seconds > plan.warmup_seconds else "warm-up",
                completed=now.seconds,
                rate=f"{now.answered_per_second:,.0f}",
                p99=f"{now.latest.milliseconds(99):.1f}",
            )

        yield report_progress
