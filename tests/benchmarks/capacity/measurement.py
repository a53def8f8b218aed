"""Measures a replica: its curve under each workload, its start, its memory."""

import os
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil

from deploy.capacity.measured import SIMULATED, Measured, Point, Way
from serving.client import DigitClient
from serving.cores import usable_cores
from serving.inference.model import open_model
from serving.loadtest import objectives
from serving.loadtest.calls import GrpcTarget
from serving.loadtest.generator import samples
from serving.loadtest.knee import judge
from serving.loadtest.plan import Plan, Rpc
from serving.loadtest.target import Images
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.repository import versions
from serving.samples.photograph import photograph
from serving.settings import BUNDLED, Settings
from tests.benchmarks.capacity.sender import Sent, send
from tests.benchmarks.generators import WrongAnswers, check, load
from tests.support.service import Service, service

OBJECTIVES = "p99=100ms,errors=0.1%"
DEADLINE_SECONDS = 1.0
CONNECTIONS = 32  # of an open loop; the kernel spreads connections over the two workers of a pod

# Rates as shares of the closed loop's calls a second. The simulated workload has more of them, some past the knee.
SHARES = (0.35, 0.5, 0.6, 0.75, 1.0)
SIMULATED_SHARES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 2.0, 3.5, 7.0)
_WARMUP_SECONDS = 0.5
_STARTS = 3

# Cores that other work on the machine may use. Above this, a rate is measured again until the patience is used up.
_OTHERS_CORES = 0.1
_TRIES = 4
_QUIET_SECONDS = 0.3


@dataclass(frozen=True)
class _Call:
    name: str
    rpc: Rpc
    images: int
    callers: int
    crops: bool = False


_CALLS = (
    _Call("single digits", "recognize", 1, 64),
    _Call(SIMULATED, "field", 5, 32),
    _Call("fields of five crops", "field", 5, 32, crops=True),
    _Call("batches of 64", "batch", 64, 8),
    _Call("streams", "stream", 1, 128),
)


@dataclass(frozen=True)
class CropTarget(GrpcTarget):
    """A service that receives photographs of the digits, as a camera makes them, instead of framed images."""

    def request(self, plan: Plan, images: Images) -> bytes:
        """Returns a field of JPEG photographs, 90 by 140 pixels each."""
        crops = [photograph(image, np.random.default_rng(int(image.sum()))) for image in images]
        return bytes(pb.ReadFieldRequest(crops=crops, model=plan.model).SerializeToString())


class _Patience:
    """The remaining time to wait for a quiet machine.

    Attributes:
        left: seconds.
    """

    def __init__(self, seconds: float):
        self.left = seconds

    def wait(self) -> None:
        """Waits until other work on the machine pauses, or no time is left."""
        while self.left > 0:
            begun = time.monotonic()
            if psutil.cpu_percent(_QUIET_SECONDS) / 100 * (os.cpu_count() or 1) <= _OTHERS_CORES:
                return
            self.left -= time.monotonic() - begun


def measure(rounds: int, seconds: float, patience_seconds: float, report: Callable[[str], None]) -> Measured:
    """Measures every workload at every rate, in rounds, so that a disturbance hits one round and not one point.

    Args:
        rounds: number of measurements of each rate; the median counts.
        seconds: length of each measurement.
        patience_seconds: total time to wait while other work keeps this machine busy.
        report: receives lines of progress.
    """
    patience = _Patience(patience_seconds)
    started = sorted(_start_seconds() for _ in range(_STARTS))[_STARTS // 2]
    report(f"ready after {started:.2f} s")
    most: dict[str, float] = {}
    on_one_connection: dict[str, list[float]] = defaultdict(list)
    found: dict[tuple[str, float], list[_Round]] = defaultdict(list)
    with service() as server:
        for call in _CALLS:
            target, plan = _target(server, call), _plan(call, seconds)
            check(target, replace(plan, callers=call.callers))
            for _ in range(_TRIES):  # the best try counts: other work only ever lowers the number
                patience.wait()
                answered = load(target, replace(plan, callers=call.callers, seconds=seconds / 2)).calls_per_second
                most[call.name] = max(most.get(call.name, 0.0), answered)
            report(f"{call.name}: {most[call.name]:,.0f} calls a second")
        for number in range(rounds):
            for share in sorted({*SHARES, *SIMULATED_SHARES}):
                for call in _CALLS:
                    if share in (SIMULATED_SHARES if call.name == SIMULATED else SHARES):
                        plan = replace(_plan(call, seconds), rate=share * most[call.name], seed=number)
                        found[call.name, share].append(_point(server, call, plan, patience))
            for call in _CALLS:
                plan = replace(_plan(call, seconds), rate=most[call.name], seed=number, connections=1)
                sent = _point(server, call, plan, patience).sent
                on_one_connection[call.name].append(sent.rate * (1 - sent.tally.errors))
            others = [one.others for points in found.values() for one in points]
            noise = f"other work used {statistics.median(others):.2f} cores (median), {max(others):.2f} at most"
            report(f"round {number + 1} of {rounds}; {noise}")
        memory = sum(one.memory_full_info().pss for one in _processes(server)) / 1e6
    ways = []
    for call in _CALLS:
        of_rates = [of_rate for (name, _), of_rate in found.items() if name == call.name]
        sender, on_one = of_rates[0][0].sent.sender, statistics.median(on_one_connection[call.name])
        points = tuple(map(_medians, of_rates))
        ways.append(Way(call.name, call.rpc, call.images, sender, most[call.name], on_one, points))
    version = versions.latest(BUNDLED, str(Settings().default_model))
    model = open_model(version.path.read_bytes(), str(version.number))
    return Measured(
        date=datetime.now(UTC).date().isoformat(),
        machine=_machine(),
        cores=usable_cores(),
        python=platform.python_version(),
        commit=_commit(),
        model=f"{model.metadata.recipe} {model.version} ({model.metadata.precision})",
        rounds=rounds,
        seconds=seconds,
        objectives=OBJECTIVES,
        deadline_seconds=DEADLINE_SECONDS,
        start_seconds=started,
        memory_mb=memory,
        ways=tuple(ways),
    )


def _target(server: Service, call: _Call) -> GrpcTarget:
    return CropTarget(server.address) if call.crops else GrpcTarget(server.address)


def _plan(call: _Call, seconds: float) -> Plan:
    return Plan(
        rpc=call.rpc,
        images=call.images,
        seconds=seconds,
        warmup_seconds=_WARMUP_SECONDS,
        timeout_seconds=DEADLINE_SECONDS,
        connections=CONNECTIONS,
    )


@dataclass(frozen=True)
class _Round:
    """One measurement of one rate.

    Attributes:
        sent: the calls and their results.
        others: cores that other work used meanwhile.
        kept: True if the objectives were met.
    """

    sent: Sent
    others: float
    kept: bool


def _point(server: Service, call: _Call, plan: Plan, patience: _Patience) -> _Round:
    """Measures a rate several times on a busy machine, and returns the quietest try."""
    tries: list[_Round] = []
    while not tries or (tries[-1].others > _OTHERS_CORES and len(tries) < _TRIES and patience.left > 0):
        patience.wait()
        tries.append(_try(server, call, plan))
    return min(tries, key=lambda one: one.others)


def _try(server: Service, call: _Call, plan: Plan) -> _Round:
    begun, busy = time.monotonic(), _busy_seconds(server)
    sent = send(_target(server, call), server.metrics, plan)
    others = max(0.0, _busy_seconds(server) - busy) / (time.monotonic() - begun)
    step = judge(sent.rate, sent.tally, sent.seconds, objectives.parse(OBJECTIVES))
    return _Round(sent, others, step.kept)


def _busy_seconds(server: Service) -> float:
    """Returns the CPU seconds of all other processes: not the service, not this process, not its finished children."""
    machine, ours = psutil.cpu_times(), os.times()
    spent = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - getattr(machine, "guest", 0.0)
    return spent - sum(ours[:4]) - _cpu_seconds(server)


def _medians(rounds: Sequence[_Round]) -> Point:
    def median(of: Callable[[Sent], float]) -> float:
        return statistics.median(of(one.sent) for one in rounds)

    scrapes = [one.in_flight for found in rounds for one in found.sent.scrapes]
    return Point(
        rate=median(lambda sent: sent.rate),
        answered=median(lambda sent: 1 - sent.tally.errors),
        p50_ms=median(lambda sent: sent.tally.milliseconds(50)),
        p99_ms=median(lambda sent: sent.tally.milliseconds(99)),
        in_flight=median(lambda sent: sent.in_flight),
        in_flight_scraped=statistics.mean(scrapes),
        in_flight_deviation=statistics.stdev(scrapes),
        in_flight_outside=median(lambda sent: sent.outside),
        cores=median(lambda sent: sent.cores),
        others=statistics.median(one.others for one in rounds),
        kept=sum(one.kept for one in rounds),
    )


def _processes(server: Service) -> list[psutil.Process]:
    first = psutil.Process(server.process.pid)
    return [first, *first.children(recursive=True)]


def _cpu_seconds(server: Service) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in _processes(server))


def _start_seconds() -> float:
    """Returns the seconds from the start of the process to the first right answer, with one worker a core."""
    start = time.monotonic()
    with service() as server, DigitClient(server.address, timeout_seconds=10) as client:
        if client.recognize(samples()[7]).digit != 7:
            raise WrongAnswers("the first answer is wrong")
        return time.monotonic() - start


def _machine() -> str:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return names[0] if names else platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "serving")
    return git("rev-parse", "--short", "HEAD") + (" with changes to serving/" if changed else "")
