"""Our service beside other model servers, with the same ONNX file and the same callers: `make bench-peers`.

One server runs at a time: each round starts, warms up, measures and stops every server. Ours has the settings of
`make serve`, and answers the Open Inference Protocol like the others. The median of the rounds counts.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from serving.cores import usable_cores
from serving.loadtest.calls import GrpcTarget
from serving.loadtest.plan import Plan
from serving.loadtest.processes import LoadTestError
from serving.loadtest.target import Target
from serving.repository import versions
from serving.settings import BUNDLED
from tests.benchmarks.generators import Figures, WrongAnswers, check, load
from tests.benchmarks.peers.peer import MODEL, PEERS, Peer, PeerUnavailable
from tests.benchmarks.peers.running import running
from tests.support.service import service

WORKLOADS = ((1, 1), (128, 1), (8, 64), (4, 1024))  # callers, images a call
_REASON_CHARACTERS = 200


@contextmanager
def _target(peer: Peer | None) -> Iterator[Target]:
    """Runs a peer, or our service for None. Raises PeerUnavailable."""
    if peer is None:
        with service() as started:
            yield GrpcTarget(started.address)
    else:
        with running(peer, versions.latest(BUNDLED, MODEL).path) as address:
            yield peer.target(address)


def main() -> None:
    """Measures all servers in turn, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--only", nargs="*", metavar="PEER", help="beside ours (default: all)")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if not options.only or peer.name in options.only]
    found: dict[str, dict[tuple[int, int], list[Figures]]] = defaultdict(lambda: defaultdict(list))
    failures: dict[str, str] = {}
    for _ in range(options.rounds):
        for peer in (None, *peers):
            name = peer.name if peer else "ours"
            if name in failures:
                continue
            try:
                with _target(peer) as target:
                    for callers, images in WORKLOADS:
                        plan = Plan(rpc="infer", images=images, callers=callers, seconds=options.seconds, model=MODEL)
                        check(target, plan)
                        figures = load(target, plan)
                        found[name][callers, images].append(figures)
                        check(target, plan)
            except (PeerUnavailable, WrongAnswers, LoadTestError) as why:
                if peer is None:
                    raise
                failures[name] = str(why).replace("\n", " ")[:_REASON_CHARACTERS]
    _print(peers, found, failures)


def _print(peers: list[Peer], found: dict[str, dict[tuple[int, int], list[Figures]]], failures: dict[str, str]) -> None:
    model = versions.latest(BUNDLED, MODEL)
    print(f"Model {MODEL} {model.number}, {usable_cores()} cores; images a second, and the ratio of ours to theirs.\n")
    heads = [f"{callers} caller{'s' * (callers > 1)}, {images:,} a call" for callers, images in WORKLOADS]
    print("| | " + " | ".join(f"{head} | ours | p99 ms" for head in heads) + " |")
    print("|---|" + "---:|---:|---:|" * len(heads))
    rates = {
        name: {
            load: statistics.median(one.calls_per_second * load[1] for one in measured) for load, measured in rows.items()
        }
        for name, rows in found.items()
    }
    for name, rows in rates.items():
        cells = []
        for workload in WORKLOADS:
            if workload in rows:
                p99 = statistics.median(one.p99 for one in found[name][workload])
                cells += [f"{rows[workload]:,.0f}", f"{rates['ours'][workload] / rows[workload]:.1f}", f"{p99:.1f}"]
            else:
                cells += ["-", "", ""]
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for peer in peers:
        failure = f"; failed: {failures[peer.name]}" if peer.name in failures else ""
        print(f"- {peer.name} {peer.version() if peer.name in found else ''}: {peer.settings}{failure}")


if __name__ == "__main__":
    main()
