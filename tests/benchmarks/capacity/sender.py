"""What sends the calls of an open loop, at random, to a service on the same cores, and what became of them.

h2load where it is installed and can: it takes a tenth of the CPU time that our load test does. It does not read what is
answered, so the service says how calls ended: when some were refused, the quickest of all calls are taken for these, and the
slowest for those that ended at their deadline.
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
_CONNECTING_SECONDS = 0.4  # until all processes of h2load have
_MANY = 10_000  # calls on their way on a connection, more than there will be
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
    """What the service said of itself at a time, Unix time.

    Attributes:
        in_flight: requests in work.
        seconds: that all requests so far were in work.
        ended, ok, late: requests so far: all, answered, and those whose deadline passed.
        cpu: seconds of CPU time so far, of all its processes.
    """

    at: float
    in_flight: float
    seconds: float
    ended: float
    ok: float
    late: float
    cpu: float


def scrape(metrics: str) -> Scrape:
    """Asks the service at its URL of metrics."""
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
    """What became of the calls of one measurement, within the time from the first scrape to the last.

    Attributes:
        sender: what sent.
        rate: calls a second that came.
        tally: of those.
        scrapes: of the service, meanwhile.
        outside: calls that the sender waited for, on average over the time.
    """

    sender: str
    rate: float
    tally: Tally
    scrapes: list[Scrape] = field(default_factory=list)
    outside: float = 0.0

    @property
    def seconds(self) -> float:
        """How long was measured."""
        return self.scrapes[-1].at - self.scrapes[0].at

    @property
    def in_flight(self) -> float:
        """Requests in work, on average over the time."""
        return (self.scrapes[-1].seconds - self.scrapes[0].seconds) / self.seconds

    @property
    def cores(self) -> float:
        """That the service took."""
        return (self.scrapes[-1].cpu - self.scrapes[0].cpu) / self.seconds


def send(target: GrpcTarget, metrics: str, plan: Plan) -> Sent:
    """Carries out a plan with a rate. Raises WrongAnswers, LoadTestError."""
    if plan.rpc != "stream" and shutil.which("h2load"):
        return _by_h2load(target, metrics, plan)
    return _by_loadtest(target, metrics, plan)


def _by_loadtest(target: GrpcTarget, metrics: str, plan: Plan) -> Sent:
    scrapes: list[Scrape] = []

    def tell(progress: Progress) -> None:
        if plan.warmup_seconds <= progress.seconds < plan.warmup_seconds + plan.seconds:
            scrapes.append(scrape(metrics))

    tally = processes.measure(plan, target, 1, tell)
    mean_seconds = tally.microseconds.get_mean_value() / 1e6
    rate = tally.calls / plan.seconds
    return Sent("digits loadtest", rate, tally, scrapes, tally.answered / plan.seconds * mean_seconds)


def _by_h2load(target: GrpcTarget, metrics: str, plan: Plan) -> Sent:
    """A process for each connection, with its own times: those of one process would all send at the same."""
    assert plan.rate is not None
    message = target.request(plan, np.resize(samples(), (plan.images, 28, 28)))
    headers = "content-type: application/grpc", "te: trailers", f"grpc-timeout: {plan.timeout_seconds * 1000:.0f}m"
    chance = np.random.default_rng(plan.seed)
    lasting = _CONNECTING_SECONDS + plan.warmup_seconds + plan.seconds
    before = scrape(metrics)
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as senders:
        body = Path(place) / "body"
        body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        started, logs = [], [Path(place) / f"log{number}" for number in range(plan.connections)]
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
            said, _ = one.communicate(timeout=60)
            if one.returncode:
                raise WrongAnswers(f"{target.address}: h2load ended with {one.returncode}: {said}")
        logged = np.concatenate([np.loadtxt(log, dtype=np.float64, usecols=(0, 2), ndmin=2) for log in logs])
    return _seen(plan, logged[:, 0] / 1e6, logged[:, 1] / 1e6, [before, *scrapes, scrape(metrics)])


def _due(chance: np.random.Generator, rate: float, seconds: float) -> NDArray[np.float64]:
    """When calls are, of so many a second at random; one at least."""
    due = np.cumsum(chance.exponential(1 / rate, round(2 * seconds * rate) + 20))
    return due[: max(1, int((due < seconds).sum()))]


def _seen(plan: Plan, begun: NDArray[np.float64], took: NDArray[np.float64], scrapes: list[Scrape]) -> Sent:
    """What became of calls that h2load has timed, seconds; the first scrape was before all of them, and the last after."""
    before, first, *_, last, after = scrapes
    inside = (begun >= first.at) & (begun < last.at)
    calls, seconds = int(inside.sum()), last.at - first.at
    refused = 1 - (after.ok - before.ok) / len(begun)
    late = (after.late - before.late) / len(begun)
    if refused > _FEW_REFUSED:  # what was taken on before, and what is answered afterwards, would count too much
        refused = max(0.0, 1 - (last.ok - first.ok) / calls)
        late = min(refused, (last.late - first.late) / calls)
    ended = begun + took
    tally = _tally(took[inside], refused, late, int(((ended >= first.at) & (ended < last.at)).sum()))
    return Sent("h2load", calls / seconds, tally, scrapes[1:-1], float(took[inside].sum()) / seconds)


def _tally(seconds: NDArray[np.float64], refused: float, late: float, ended: int) -> Tally:
    """Of calls whose times are known, and of whose ends only the shares are."""
    tally = Tally(ended=ended)
    in_order = np.sort(seconds)
    at_once, in_time = (round(share * len(in_order)) for share in (max(0.0, refused - late), 1 - late))
    tally.codes.update({"RESOURCE_EXHAUSTED": at_once, "DEADLINE_EXCEEDED": len(in_order) - in_time})
    for one in in_order[at_once:in_time]:
        tally.count("OK", float(one), right=True)
    tally.answered = tally.codes["OK"]
    return tally
