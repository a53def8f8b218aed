"""Our service beside other model servers, with the same ONNX file and the same callers: `make bench-peers`.

One server runs at a time: each round starts, warms up, measures and stops every server. Ours has the settings of
`make serve`, with each of its fronts, and answers the Open Inference Protocol like the others. The median of the rounds
counts.
"""

import argparse
import contextlib
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from serving.cores import usable_cores
from serving.loadtest.calls import GrpcTarget
from serving.loadtest.plan import Plan
from serving.loadtest.processes import LoadTestError
from serving.loadtest.target import Target
from serving.repository import versions
from serving.settings import BUNDLED
from tests.benchmarks.generators import SETTLING_SECONDS, Figures, WrongAnswers, check, load
from tests.benchmarks.peers.peer import MODEL, PEERS, Peer, PeerUnavailable
from tests.benchmarks.peers.running import running
from tests.support.service import service

WORKLOADS = ((1, 1), (8, 1), (32, 1), (128, 1), (8, 64), (4, 1024), (512, 1))  # callers, images a call; the hardest last
OURS = {"ours": "http2", "ours, front grpcio": "grpcio"}
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Measured:
    """One measurement: the figures, and the server's CPU time a call in seconds, with all its processes."""

    figures: Figures
    cpu_seconds: float


Found = dict[tuple[int, int], list[Measured]]
"""The measurements of one server, by callers and images a call."""


@contextmanager
def _target(name: str, peer: Peer | None) -> Iterator[Target]:
    """Runs a peer, or our service for None. Raises PeerUnavailable."""
    if peer is None:
        with service("--front", OURS[name]) as started:
            yield GrpcTarget(started.address)
    else:
        with running(peer, versions.latest(BUNDLED, MODEL).path) as address:
            yield peer.target(address)


def _measure(target: Target, plan: Plan) -> Measured:
    before = _cpu_seconds()
    figures = load(target, plan)
    calls = figures.calls_per_second * (plan.seconds + SETTLING_SECONDS)
    return Measured(figures, (_cpu_seconds() - before) / calls)


def _cpu_seconds() -> float:
    """Returns the CPU time of all processes that this one has started and that live: those of the server."""
    spent = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def main() -> None:
    """Measures all servers in turn, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--only", nargs="*", metavar="PEER", help="beside ours (default: all)")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if not options.only or peer.name in options.only]
    found: dict[str, Found] = defaultdict(lambda: defaultdict(list))
    servers: list[tuple[str, Peer | None]] = [*((name, None) for name in OURS), *((peer.name, peer) for peer in peers)]
    failures: dict[str, list[str]] = defaultdict(list)
    unavailable: set[str] = set()
    for _ in range(options.rounds):
        for name, peer in servers:
            if name in unavailable:
                continue
            try:
                with _target(name, peer) as target:
                    for callers, images in WORKLOADS:
                        plan = Plan(rpc="infer", images=images, callers=callers, seconds=options.seconds, model=MODEL)
                        check(target, plan)
                        found[name][callers, images].append(_measure(target, plan))
                        check(target, plan)
            except (PeerUnavailable, WrongAnswers, LoadTestError) as why:
                if peer is None:
                    raise
                failures[name].append(str(why).replace("\n", " ")[:_REASON_CHARACTERS])
                if isinstance(why, PeerUnavailable):
                    unavailable.add(name)
    _print(peers, found, failures)


def _print(peers: list[Peer], found: Mapping[str, Found], failures: Mapping[str, list[str]]) -> None:
    model = versions.latest(BUNDLED, MODEL)
    print(f"Model {MODEL} {model.number}, {usable_cores()} cores.")
    medians = {
        name: {
            workload: (
                statistics.median(one.figures.calls_per_second for one in measured) * workload[1],
                statistics.median(one.figures.p99 for one in measured),
                statistics.median(one.cpu_seconds for one in measured) * 1e6,
            )
            for workload, measured in rows.items()
        }
        for name, rows in found.items()
    }
    titles = "images a second (ours divided by theirs)", "p99, ms", "CPU time of the server, µs a call"
    for quantity, title in enumerate(titles):
        print(f"\n| {title} | " + " | ".join(medians) + " |")
        print("|---|" + "---:|" * len(medians))
        for workload in WORKLOADS:
            cells = []
            for rows in medians.values():
                cell = "-"
                if workload in rows:
                    value = rows[workload][quantity]
                    cell = f"{value:,.1f}" if quantity == 1 else f"{value:,.0f}"
                    cell += f" ({medians['ours'][workload][0] / value:.1f})" if quantity == 0 else ""
                cells.append(cell)
            print(f"| {workload[0]} callers, {workload[1]:,} a call | {' | '.join(cells)} |")
    print()
    for peer in peers:
        failed = failures.get(peer.name, [])
        failure = f"; failed in {len(failed)} rounds: {failed[0]}" if failed else ""
        print(f"- {peer.name} {peer.version() if peer.name in found else ''}: {peer.settings}{failure}")


if __name__ == "__main__":
    main()
