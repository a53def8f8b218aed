"""Sends the calls of an open loop at random times to a service on the same cores, and collects the results.

The sender is h2load if it is installed and speaks the RPC, as it uses a tenth of the CPU time of our load test. h2load does
not parse answers, so the service's metrics supply the number of refused and late calls. The quickest calls then count as
the refused ones, and the slowest as the late ones.
"""

import contextlib
import re
import shutil
import struct
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.loadtest import processes
from serving.loadtest.calls import KINDS, GrpcTarget
from serving.loadtest.generator import samples
from serving.loadtest.plan import Plan
from serving.loadtest.processes import Progress
from serving.loadtest.tally import Tally
from tests.benchmarks.generators import WrongAnswers

_SCRAPE_SECONDS = 0.25
_CONNECTING_SECONDS = 0.4  # until all processes of h2load are connected
_MANY = 10_000  # concurrent calls allowed on a connection; never reached
_FEW_REFUSED = 0.01

_SERIES = {
    "in_flight": r"digits_in_flight_requests",
    "seconds": r"digits_request_seconds_sum",
    "ended": r"digits_requests_total",
    "ok": r'digits_requests_total(?=\{[^}]*code="OK")',
    "cpu": r"process_cpu_seconds_total",
    "late": r'digits_requests_total(?=\{[^}]*code="DEADLINE_EXCEEDED")',
}


@dataclass(frozen=True)
class Scrape:
    """The service's metrics at one moment.

    Attributes:
        at: Unix time.
        in_flight: requests in work.
        seconds: total seconds that requests have been in work so far.
        ended, ok, late: requests so far: all, answered, and past their deadline.
        cpu: CPU seconds of all processes so far.
    """

    at: float
    in_flight: float
    seconds: float
    ended: float
    ok: float
    late: float
    cpu: float


def scrape(metrics: str) -> Scrape:
    """Scrapes the service at the URL of its metrics."""
    with urllib.request.urlopen(metrics, timeout=20) as page:
        text = str(page.read(), "utf-8")
    at = time.time()
    sums = {
        name: sum(map(float, re.findall(rf"^{series}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)))
        for name, series in _SERIES.items()
    }
    return Scrape(at, **sums)


@dataclass
class Sent:
    """The calls of one measurement, from the first scrape to the last.

    Attributes:
        sender: program that sent them.
        rate: calls a second.
        tally: their results and times.
        scrapes: of the service, in order of time.
        outside: mean number of calls that the sender waited for.
    """

    sender: str
    rate: float
    tally: Tally
    scrapes: list[Scrape] = field(default_factory=list)
    outside: float = 0.0

    @property
    def seconds(self) -> float:
        """Length of the measurement."""
        return self.scrapes[-1].at - self.scrapes[0].at

    @property
    def in_flight(self) -> float:
        """Mean number of requests in work."""
        return (self.scrapes[-1].seconds - self.scrapes[0].seconds) / self.seconds

    @property
    def cores(self) -> float:
        """CPU cores that the service used."""
        return (self.scrapes[-1].cpu - self.scrapes[0].cpu) / self.seconds


def send(target: GrpcTarget, metrics: str, plan: Plan) -> Sent:
    """Sends the calls of a plan that has a rate.

    Raises:
        WrongAnswers: an answer was wrong, or h2load failed.
        LoadTestError: the load test failed.
    """
    if plan.rpc != "stream" and shutil.which("h2load"):
        return _by_h2load(target, metrics, plan)
    return _by_loadtest(target, metrics, plan)


def _by_loadtest(target: GrpcTarget, metrics: str, plan: Plan) -> Sent:
    scrapes: list[Scrape] = []

    def look(progress: Progress) -> None:
        if plan.warmup_seconds <= progress.seconds < plan.warmup_seconds + plan.seconds:
            scrapes.append(scrape(metrics))

    tally = processes.measure(plan, target, 1, look)
    mean_seconds = tally.microseconds.get_mean_value() / 1e6
    rate = tally.due / plan.seconds
    return Sent("digits loadtest", rate, tally, scrapes, tally.answered / plan.seconds * mean_seconds)


def _by_h2load(target: GrpcTarget, metrics: str, plan: Plan) -> Sent:
    """Runs one h2load for each connection: the connections of a single h2load would all send at the same times."""
    assert plan.rate is not None
    message = target.request(plan, np.resize(samples(), (plan.images, 28, 28)))
    headers = "content-type: application/grpc", "te: trailers", f"grpc-timeout: {plan.timeout_seconds * 1000:.0f}m"
    chance = np.random.default_rng(plan.seed)
    lasting = _CONNECTING_SECONDS + plan.warmup_seconds + plan.seconds
    before = scrape(metrics)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as senders:
        body = Path(directory) / "body"
        body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        started, logs = [], [Path(directory) / f"log{number}" for number in range(plan.connections)]
        for log in logs:
            script = log.with_suffix(".script")
            due = _due(chance, plan.rate / plan.connections, lasting)
            script.write_text("".join(f"{1000 * at:.3f}\thttp://{target.address}{KINDS[plan.rpc].method}\n" for at in due))
            command = ["h2load", "-t", "1", "-c", "1", "-m", str(_MANY), "-d", str(body)]
            command += [f"--timing-script-file={script}", f"--log-file={log}"]
            command += [flag for header in headers for flag in ("-H", header)]
            one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            started.append(senders.enter_context(one))
        start = time.time() + _CONNECTING_SECONDS + plan.warmup_seconds
        scrapes: list[Scrape] = []
        while (next_at := start + len(scrapes) * _SCRAPE_SECONDS) <= start + plan.seconds:
            time.sleep(max(0.0, next_at - time.time()))
            scrapes.append(scrape(metrics))
        for one in started:
            output, _ = one.communicate(timeout=60)
            if one.returncode:
                raise WrongAnswers(f"{target.address}: h2load ended with exit status {one.returncode}: {output}")
        logged = np.concatenate([np.loadtxt(log, dtype=np.float64, usecols=(0, 2), ndmin=2) for log in logs])
    return _evaluate(plan, logged[:, 0] / 1e6, logged[:, 1] / 1e6, [before, *scrapes, scrape(metrics)])


def _due(chance: np.random.Generator, rate: float, seconds: float) -> NDArray[np.float64]:
    """Draws the times of at least one call, seconds, of a Poisson process."""
    due = np.cumsum(chance.exponential(1 / rate, round(2 * seconds * rate) + 20))
    return due[: max(1, int((due < seconds).sum()))]


def _evaluate(plan: Plan, begun: NDArray[np.float64], took: NDArray[np.float64], scrapes: list[Scrape]) -> Sent:
    """Evaluates calls by their start and duration, seconds. The first scrape was before all of them, the last after."""
    before, first, *_, last, after = scrapes
    inside = (begun >= first.at) & (begun < last.at)
    calls, seconds = int(inside.sum()), last.at - first.at
    refused = 1 - (after.ok - before.ok) / len(begun)
    late = (after.late - before.late) / len(begun)
    if refused > _FEW_REFUSED:  # calls admitted before and answered after the measurement would count too much
        refused = max(0.0, 1 - (last.ok - first.ok) / calls)
        late = min(refused, (last.late - first.late) / calls)
    ended = begun + took
    tally = _tally(took[inside], refused, late, int(((ended >= first.at) & (ended < last.at)).sum()))
    return Sent("h2load", calls / seconds, tally, scrapes[1:-1], float(took[inside].sum()) / seconds)


def _tally(seconds: NDArray[np.float64], refused: float, late: float, ended: int) -> Tally:
    """Makes a tally of the calls' times and of the shares of refused and late calls."""
    tally = Tally(ended=ended)
    in_order = np.sort(seconds)
    at_once, in_time = (round(share * len(in_order)) for share in (max(0.0, refused - late), 1 - late))
    tally.codes.update({"RESOURCE_EXHAUSTED": at_once, "DEADLINE_EXCEEDED": len(in_order) - in_time})
    for one in in_order[at_once:in_time]:
        tally.count("OK", float(one), right=True)
    tally.answered = tally.codes["OK"]
    return tally
