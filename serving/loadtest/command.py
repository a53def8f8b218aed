"""`digits loadtest`: reads what is asked for, carries it out, and shows what came of it."""

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

MISSED = 3  # the exit status where an objective is
FIRST_RATE = 100.0  # calls a second, of a search for the knee
IMAGES = 64  # in a call that takes several

_MOST_PROCESSES = 1000
_RECOVERY_SECONDS = 2.0  # that a service may need after a rate that was far too high

Measure = Callable[[Plan], Tally]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags, but for those of the connection, which other commands have too."""
    kinds = (*KINDS, "stream")
    parser.add_argument("--rpc", choices=kinds, default="recognize", help="what to call (default: %(default)s)")
    parser.add_argument(
        "--images", type=_count, help=f"in a call of batch or infer (default: {IMAGES}), digits in a field (default: 5)"
    )
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--callers", type=_count, help="a closed loop of so many (default: 32)")
    load.add_argument("--rate", type=_positive, help="an open loop: calls a second, whether answers keep up or not")
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "fixed"),
        help="of an open loop: at random, or evenly (default: poisson)",
    )
    parser.add_argument(
        "--find-knee",
        action="store_true",
        help="raise the rate, from --rate on, until an objective of --slo breaks, or answers fall behind, twice",
    )
    parser.add_argument(
        "--slo",
        type=_objectives,
        default=[],
        metavar="OBJECTIVES",
        help="such as p99=20ms,errors=0.1%%; missed: exit status 3",
    )
    parser.add_argument("--seconds", type=_positive, default=10.0, help="to measure, each rate (default: %(default)g)")
    parser.add_argument("--warmup", type=_duration, default=2.0, help="seconds sent beforehand (default: %(default)g)")
    parser.add_argument("--processes", type=_count, default=1, help="that send (default: %(default)s)")
    parser.add_argument(
        "--connections", type=_count, default=8, help="of each process; workers share them (default: %(default)s)"
    )
    parser.add_argument("--model", default="", help="to read the images (default: the service's)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--png", type=Path, metavar="FILE", help="with --find-knee: draw latency against throughput there")


def read_plan(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Plan:
    """What is to be measured; ends the program where flags contradict each other."""
    if options.find_knee and not options.slo:
        parser.error("--find-knee needs --slo: it is where that breaks")
    if options.find_knee and options.callers:
        parser.error("--find-knee is of an open loop, and takes no --callers")
    if options.arrivals and not (options.rate or options.find_knee):
        parser.error("--arrivals are of an open loop: it needs --rate or --find-knee")
    if options.png and not options.find_knee:
        parser.error("--png needs --find-knee: one rate makes no picture")
    if options.images and options.rpc in ("recognize", "stream"):
        parser.error(f"--rpc {options.rpc} takes one image a call, and no --images")
    if options.seed < 0:
        parser.error("--seed must not be negative")
    if options.processes > _MOST_PROCESSES:
        parser.error(f"--processes must be {_MOST_PROCESSES:,} at most")
    if not 0 < options.timeout < math.inf:
        parser.error("--timeout must be a number above 0")
    for file in (options.json, options.png):  # rather than to find it out when all is measured
        if file and not file.parent.is_dir():
            parser.error(f"{file.parent} is no directory")
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
    """Carries out what `options` ask for; returns the exit status, as --help has it."""
    try:
        with _bar(plan, shown=sys.stderr.isatty()) as tell:

            def measure(one: Plan) -> Tally:
                return processes.measure(one, target, options.processes, tell)

            carry_out = _find_knee if options.find_knee else _measure
            status, shown, numbers = carry_out(plan, options.slo, measure, options.png)
        print(shown)
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
    """One rate: the exit status, what to print, and its numbers."""
    tally = measure(plan)
    found = report.figures(plan, tally)
    _warn(tally)
    missed = objectives.broken(slo, tally)
    shown = "\n".join([report.table([found]), *(f"missed: {one}" for one in missed)])
    if not tally.codes["OK"]:
        raise processes.LoadTestError(f"no call was answered\n{shown}")
    return MISSED if missed else 0, shown, {**found, "missed": missed}


def _find_knee(
    plan: Plan, slo: list[objectives.Objective], measure: Measure, png: Path | None
) -> tuple[int, str, dict[str, Any]]:
    """Many rates: likewise."""
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
        line = f"the first rate, {steps[0].rate:,.0f} calls a second, breaks: {'; '.join(steps[0].broken)}"
    numbers = {"slo": named, "knee": knee, "steps": rows}
    return 0 if best else MISSED, f"{report.table(rows)}\n{line}", numbers


def _warn(tally: Tally) -> None:
    if why := report.sender_too_slow(tally):
        print(f"digits loadtest: {why}; more --processes, or a machine of its own, may help", file=sys.stderr, flush=True)


@contextmanager
def _bar(plan: Plan, *, shown: bool) -> Iterator[Callable[[processes.Progress], None]]:
    """A bar on the terminal with the rate and the p99 of the latest half second."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]} calls/s  p99 {task.fields[p99]} ms"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        task = progress.add_task("warm-up", total=plan.warmup_seconds + plan.seconds, rate="-", p99="-")

        def tell(now: processes.Progress) -> None:
            progress.update(
                task,
                description="measuring" if now.seconds > plan.warmup_seconds else "warm-up",
                completed=now.seconds,
                rate=f"{now.answered_per_second:,.0f}",
                p99=f"{now.latest.milliseconds(99):.1f}",
            )

        yield tell


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
