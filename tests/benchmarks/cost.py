"""Load with its price: the CPU time that the processes of a server spend on each call."""

from pathlib import Path

import psutil

from serving.loadtest.calls import GrpcTarget
from serving.loadtest.plan import Plan
from serving.loadtest.target import Target
from tests.benchmarks.generators import SETTLING_SECONDS, Figures, WrongAnswers, check, load
from tests.support.service import Service


def load_with_cost(pids: list[int], target: Target, plan: Plan) -> tuple[Figures, float]:
    """Carries out a plan.

    Args:
        pids: the processes of the server; their children count too.
        target: the server.
        plan: the calls to send.

    Returns:
        The rates and latencies, and the CPU time of a call in microseconds.

    Raises:
        WrongAnswers: calls failed, or answers were wrong.
        LoadTestError: the plan can't be carried out.
    """

    def spent() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in _tree(pids))

    before = spent()
    figures = load(target, plan)
    calls = figures.calls_per_second * (SETTLING_SECONDS + plan.seconds)
    return figures, (spent() - before) / calls * 1e6


def measure(server: Service, plan: Plan, tls_ca: Path | None = None) -> tuple[Figures, float]:
    """Checks the answers of our service, then does the same as `load_with_cost`; no call may fail.

    With TLS, `tls_ca` is the file of the authority that issued the certificate of the server.
    """
    target = GrpcTarget(server.address, tls_ca=tls_ca)
    check(target, plan)
    failed = _failed_calls(server)
    measured = load_with_cost([server.process.pid], target, plan)
    if _failed_calls(server) > failed:
        raise WrongAnswers(f"calls failed with {plan}")
    return measured


def workers(server: Service) -> list[psutil.Process]:
    """Returns the processes that answer: the workers, or the one process that serves alone."""
    tree = _tree([server.process.pid])
    return tree[1:] or tree


def _failed_calls(server: Service) -> float:
    """Calls that ended without an answer. A generator cancels its last calls when its time is over; these don't count."""
    ended_well = (server.scrape("digits_requests_total", code=code) for code in ("OK", "CANCELLED"))
    return server.scrape("digits_requests_total") - sum(ended_well)


def _tree(pids: list[int]) -> list[psutil.Process]:
    parents = [psutil.Process(pid) for pid in pids]
    return parents + [child for parent in parents for child in parent.children(recursive=True)]
