"""`digits loadtest`: parses the flags, runs the measurements, and prints the results."""

import argparse
import json
import math
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
from serving.loadtest.calls import KINDS
from serving.loadtest.knee import Step, find_knee, judge
from serving.loadtest.plan import Plan
from serving.loadtest.tally import Tally
from serving.loadtest.target import Target

MISSED = 3  # exit status if an objective is missed
FIRST_RATE = 100.0  # calls per second, default for the search of the knee
IMAGES = 64  # per call of batch and infer, by default

_MAX_PROCESSES = 1000
_RECOVERY_SECONDS = 2.0  # pause for the service after a rate far above its capacity

Measure = Callable[[Plan], Tally]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this command. The flags of the connection are shared with other commands."""
    kinds = (*KINDS, "stream")
    parser.add_argument("--rpc", choices=kinds, default="recognize", help="RPC to call (default: %(default)s)")
    parser.add_argument(
        "--images", type=_count, help=f"images per call of batch or infer (default: {IMAGES}), digits per field (default: 5)"
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--callers", type=_count, help="closed loop with this number of callers (default: 32)")
    load.add_argument(
        "--rate", type=_positive, help="open loop with this number of calls per second, even if answers fall behind"
    )
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "fixed"),
        help="arrivals in an open loop: at random, or at fixed intervals (default: poisson)",
    )
    parser.add_argument(
        "--find-knee",
        action="store_true",
        help="raise the rate, starting at --rate, until an objective of --slo is missed, or answers fall behind, twice",
    )
    parser.add_argument(
        "--slo",
        type=_objectives,
        default=[],
        metavar="OBJECTIVES",
        help="for example p99=20ms,errors=0.1%%; the exit status is 3 if one is missed",
    )
    parser.add_argument("--seconds", type=_positive, default=10.0, help="length of each measurement (default: %(default)g)")
    parser.add_argument("--warmup", type=_duration, default=2.0, help="seconds of load before it (default: %(default)g)")
    parser.add_argument("--processes", type=_count, default=1, help="sending processes (default: %(default)s)")
    parser.add_argument(
        "--connections",
        type=_count,
        default=8,
        help="per process; workers divide them up (default: %(default)s)",
    )
    parser.add_argument("--model", default="", help="name of the model (default: that of the service)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    parser.add_argument("--png", type=Path, metavar="FILE", help="with --find-knee: draw latency against throughput")


def read_plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Plan:
    """Builds the plan from the flags. Exits with status 2 and a message if flags contradict each other."""
    if options.find_knee and not options.slo:
        parser.error("--find-knee needs --slo, whose objectives define the knee")
    if options.find_knee and options.callers:
        parser.error("--find-knee uses an open loop, and takes no --callers")
    if options.arrivals and not (options.rate or options.find_knee):
        parser.error("--arrivals needs an open loop: add --rate or --find-knee")
    if options.png and not options.find_knee:
        parser.error("--png needs --find-knee: a single rate is not drawn")
    if options.images and options.rpc in ("recognize", "stream"):
        parser.error(f"--rpc {options.rpc} takes one image per call, and no --images")
    if options.seed < 0:
        parser.error("--seed must not be negative")
    if options.processes > _MAX_PROCESSES:
        parser.error(f"--processes must be at most {_MAX_PROCESSES:,}")
    if not 0 < options.timeout < math.inf:
        parser.error("--timeout must be a number above 0")
    for file in (options.json, options.png):  # checked now, because the files are written after the measurement
        if file and not file.parent.is_dir():
            parser.error(f"{file.parent} is not a directory")
        if file and file.is_dir():
            parser.error(f"{file} is a directory")
    return Plan(
        rpc=options.rpc,
        images=options.images or {"recognize": 1, "stream": 1, "field": 5}.get(options.rpc, IMAGES),
        callers=None if options.rate or options.find_knee else options.callers or 32,
        rate=options.rate,
        arrivals=options.arrivals or "poisson",
        seconds=options.seconds,
        warmup_seconds=options.warmup,
        timeout_seconds=options.timeout,
        model=options.model,
        connections=options.connections,
        seed=options.seed,
    )


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
    text = "\n".join([report.table([numbers]), *(f"missed: {one}" for one in missed)])
    if not tally.codes["OK"]:
        raise processes.LoadTestError(f"no call was answered\n{text}")
    return MISSED if missed else 0, text, {**numbers, "missed": missed}


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
        print(f"{rate:10,.0f} calls a second: {'; '.join(one.broken) or 'kept'}", file=sys.stderr, flush=True)
        _warn(one.tally)
        return one

    best, steps = find_knee(carry_out, first_rate)
    if png:
        report.draw(steps, plan.images, png)
    rows = [
        {**report.figures(replace(plan, rate=one.rate), one.tally), "missed": list(one.broken)}
        for one in sorted(steps, key=lambda one: one.rate)
    ]
    knee = {"calls_per_second": best.rate, "images_per_second": best.rate * plan.images} if best else None
    named = ", ".join(map(str, slo))
    if best:
        line = f"the knee: {best.rate:,.0f} calls a second, {best.rate * plan.images:,.0f} images, keep {named}"
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


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 1,000,000, not {text}")
    return int(text)


def _duration(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1,000,000,000, not {text}")
    return number


def _positive(text: str) -> float:
    number = _duration(text)
    if not number:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


def _objectives(text: str) -> list[objectives.Objective]:
    try:
        return objectives.parse(text)
    except objectives.ObjectiveError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
