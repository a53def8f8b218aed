"""Load generators of the benchmarks: h2load where it is installed, because it needs little CPU, else `digits loadtest`.

h2load (Debian's nghttp2-client) does not look at the answers. So `check` sends one second of calls by our own load test
first: it compares the answers, and warms the server up. A failed call or a wrong answer ends the benchmark. h2load also
counts a call that gRPC ended with an error as answered: `check` again afterwards, or read the metrics of the server.
"""

import math
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from serving.loadtest import processes
from serving.loadtest.calls import KINDS, GrpcTarget
from serving.loadtest.generator import samples
from serving.loadtest.plan import Plan, Rpc
from serving.loadtest.tally import Tally
from serving.loadtest.target import Images, Target
from tests.benchmarks.peers.targets import HttpTarget

CONNECTIONS = 8  # of an HTTP/2 client: the kernel spreads them over the workers, and each worker should get some
SETTLING_SECONDS = 0.5

_MANY = 10_000  # calls in flight on a connection, more than a benchmark reaches


class WrongAnswers(Exception):
    """The measured server answers wrongly, or fails calls; the message has the details."""


@dataclass(frozen=True)
class Figures:
    """One measurement: calls a second, and percentiles of their latency in milliseconds."""

    calls_per_second: float
    p50: float
    p99: float
    generator: str


def method_name(rpc: Rpc) -> str:
    """Returns the method of the service that a kind of call uses."""
    return "RecognizeStream" if rpc == "stream" else KINDS[rpc].method.rpartition("/")[2]


def check(target: Target, plan: Plan) -> None:
    """Sends the calls of a plan for one second, and compares the answers. Raises WrongAnswers, LoadTestError."""
    _require_right(target, replace(_connected(plan), seconds=1.0, warmup_seconds=0.2))


def load(target: Target, plan: Plan) -> Figures:
    """Measures a plan with callers, after SETTLING_SECONDS of the same load. Raises WrongAnswers, LoadTestError."""
    plan = replace(_connected(plan), warmup_seconds=SETTLING_SECONDS)
    if plan.rpc != "stream" and shutil.which("h2load"):
        return _h2load(target, plan)
    tally = _require_right(target, plan)
    return Figures(tally.answered / plan.seconds, tally.milliseconds(50), tally.milliseconds(99), "digits loadtest")


def _connected(plan: Plan) -> Plan:
    return replace(plan, connections=min(CONNECTIONS, plan.callers or CONNECTIONS))


def _require_right(target: Target, plan: Plan) -> Tally:
    tally = processes.measure(plan, target, 1)
    if tally.errors:
        raise WrongAnswers(f"{target.address}: {dict(tally.codes)}, {tally.wrong} wrong, with {plan}")
    return tally


def flood(target: GrpcTarget, plan: Plan) -> None:
    """Sends an open loop by h2load, evenly spaced; the metrics of the server hold the outcomes. Raises WrongAnswers."""
    assert plan.rate is not None
    headers = "content-type: application/grpc", "te: trailers", f"grpc-timeout: {plan.timeout_seconds * 1000:.0f}m"
    with tempfile.NamedTemporaryFile() as body:
        body.write(_message(target, plan, np.resize(samples(), (plan.images, 28, 28))))
        body.flush()
        command = ["h2load", "-t", "1", "-c", str(CONNECTIONS), "-m", str(_MANY), "-d", body.name]
        command += ["--rps", f"{plan.rate / CONNECTIONS:g}", "-D", f"{plan.seconds * 1000:.0f}ms"]
        command += [flag for header in headers for flag in ("-H", header)]
        command.append(f"{_scheme(target)}://{target.address}{KINDS[plan.rpc].method}")
        _run(command, target, plan.seconds)


def _message(target: GrpcTarget, plan: Plan, images: Images) -> bytes:
    """Returns a request in gRPC framing: a flag byte, four bytes of length, the message."""
    message = target.request(plan, images)
    return b"\0" + struct.pack(">I", len(message)) + message


def _scheme(target: Target) -> str:
    return "https" if isinstance(target, GrpcTarget) and target.tls_ca else "http"


def _run(command: list[str], target: Target, seconds: float) -> str:
    """Returns the output of h2load. Raises WrongAnswers."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    except subprocess.TimeoutExpired as error:
        raise WrongAnswers(f"{target.address}: {error}") from error
    if ran.returncode:
        raise WrongAnswers(f"{target.address}: h2load ended with {ran.returncode}: {ran.stdout}{ran.stderr}")
    return ran.stdout


def _h2load(target: Target, plan: Plan) -> Figures:
    callers = plan.callers or 1
    images = np.resize(samples(), (plan.images, 28, 28))
    if isinstance(target, HttpTarget):
        content, path, kind = target.body(images), target.path, target.content_type
        shape = ["--h1", "-c", str(callers), "-m", "1"]
    elif isinstance(target, GrpcTarget):
        content, path, kind = _message(target, plan, images), KINDS[plan.rpc].method, "application/grpc"
        shape = ["-c", str(plan.connections), "-m", str(math.ceil(callers / plan.connections)), "-H", "te: trailers"]
    else:
        raise TypeError(f"h2load cannot call {target}; expected a GrpcTarget or an HttpTarget")
    with tempfile.TemporaryDirectory() as directory:
        body, log = Path(directory) / "body", Path(directory) / "log"
        body.write_bytes(content)
        command = ["h2load", "-t", "1", *shape, "-d", str(body), "-H", f"content-type: {kind}", f"--log-file={log}"]
        command += ["-D", f"{plan.seconds * 1000:.0f}ms", f"--warm-up-time={plan.warmup_seconds * 1000:g}ms"]
        command.append(f"{_scheme(target)}://{target.address}{path}")
        output = _run(command, target, plan.seconds)
        status, microseconds = np.loadtxt(log, dtype=np.int64, usecols=(1, 2), ndmin=2).T
    found = re.search(r"([\d.]+) req/s", output)
    if (
        found is None
        or not len(status)
        or (status != 200).any()
        or re.search(r" 0 failed, 0 errored, 0 timeout", output) is None
    ):
        raise WrongAnswers(f"{target.address}: {output}")
    p50, p99 = np.quantile(microseconds, (0.5, 0.99)) / 1000
    return Figures(float(found[1]), float(p50), float(p99), "h2load")
