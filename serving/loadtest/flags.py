"""The flags of `digits loadtest`, and the plan that they describe. Parses without the extra `loadtest`, for --help."""

import argparse
import math
import re
from pathlib import Path
from typing import get_args

from serving.loadtest import objectives
from serving.loadtest.plan import LATE_SECONDS, Plan, Priority, Rpc

IMAGES = 64  # per call of batch and infer, by default

_MAX_PROCESSES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this command. The flags of the connection are shared with other commands."""
    parser.add_argument("--rpc", choices=get_args(Rpc), default="recognize", help="RPC to call (default: %(default)s)")
    parser.add_argument(
        "--protocol",
        choices=("grpc", "connect"),
        default="grpc",
        help="protocol of the calls; connect has no streams, and needs the front http2 (default: %(default)s)",
    )
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
        help="raise the rate from --rate on, until an objective of --slo is missed, or answers fall behind, three times",
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
    parser.add_argument(
        "--priority", choices=get_args(Priority), default="live", help="priority of the calls (default: %(default)s)"
    )
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
    if options.protocol == "connect" and options.rpc == "stream":
        parser.error("--rpc stream needs --protocol grpc")
    if options.protocol == "connect" and not re.fullmatch(r"[^/]+:\d{1,5}", options.address):
        parser.error(f"--protocol connect needs an --address of the form host:port, not {options.address}")
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
        late_seconds=_late_seconds(options.slo),
        timeout_seconds=options.timeout,
        model=options.model,
        priority=options.priority,
        connections=options.connections,
        seed=options.seed,
    )


def _late_seconds(slo: list[objectives.Objective]) -> float:
    """Returns the delay of the sender that would spoil a measurement: a tenth of the strictest time of the objectives."""
    limits = [one.limit / 1000 for one in slo if one.percentile is not None]
    return max(LATE_SECONDS, min(limits, default=0.0) / 10)


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
