"""Two checkouts of the service, measured by turns in one run: `python -m tests.benchmarks.sidebyside --other ../before`.

A server of each checkout runs in its own processes, with the packages of this environment. Both run all the time, and one of
them is called at a time. Every round measures each workload on both, the first one by turns. So a slow minute of the machine
meets both, and the ratio of a round means more than its rates.
"""

import argparse
import statistics
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from serving.cores import usable_cores
from serving.loadtest.plan import Plan, Rpc
from tests.benchmarks.cost import measure
from tests.benchmarks.generators import Figures, method_name
from tests.support.service import ROOT, service_of

WORKLOADS: tuple[tuple[Rpc, int, int], ...] = (  # RPC, images a call, callers
    ("recognize", 1, 1),
    ("recognize", 1, 128),
    ("batch", 64, 8),
    ("field", 5, 32),
    ("stream", 1, 128),
)


@dataclass(frozen=True)
class Pair:
    """One workload in one round, on both checkouts: rates and latencies, and CPU time a call in microseconds."""

    this: tuple[Figures, float]
    other: tuple[Figures, float]

    @property
    def rate_ratio(self) -> float:
        return self.this[0].calls_per_second / self.other[0].calls_per_second

    @property
    def cpu_ratio(self) -> float:
        return self.this[1] / self.other[1]


def main() -> None:
    """Measures this checkout beside `--other`, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    other_checkout = options.other.resolve()
    pairs: dict[tuple[Rpc, int, int], list[Pair]] = defaultdict(list)
    with service_of(ROOT) as this, service_of(other_checkout) as other:
        for turn in range(options.rounds):
            for rpc, images, callers in WORKLOADS:
                plan = Plan(rpc=rpc, images=images, callers=callers, seconds=options.seconds)
                if turn % 2:
                    of_other, of_this = measure(other, plan), measure(this, plan)
                else:
                    of_this, of_other = measure(this, plan), measure(other, plan)
                pairs[rpc, images, callers].append(Pair(of_this, of_other))
    rounds = f"medians of {options.rounds} rounds, with the lowest and the highest ratio of a round"
    print(f"{_commit(ROOT)} beside {_commit(other_checkout)}; {usable_cores()} cores; {rounds}.\n")
    columns = [
        "",
        "images a call",
        "callers",
        "calls/s",
        "other",
        "ratio",
        "p99 ms",
        "other",
        "CPU a call, µs",
        "other",
        "ratio",
    ]
    print(f"| {' | '.join([*columns, 'sent by'])} |")
    print(f"|---|{'---:|' * (len(columns) - 1)}---|")
    for (rpc, images, callers), measured in pairs.items():
        print(_row(rpc, images, callers, measured))


def _row(rpc: Rpc, images: int, callers: int, pairs: list[Pair]) -> str:
    sides = [[pair.this for pair in pairs], [pair.other for pair in pairs]]
    rates = [f"{statistics.median(figures.calls_per_second for figures, _ in side):,.0f}" for side in sides]
    tails = [f"{statistics.median(figures.p99 for figures, _ in side):.1f}" for side in sides]
    costs = [f"{statistics.median(cpu for _, cpu in side):,.0f}" for side in sides]
    faster, dearer = _spread([pair.rate_ratio for pair in pairs]), _spread([pair.cpu_ratio for pair in pairs])
    cells = f"`{method_name(rpc)}`", images, callers, *rates, faster, *tails, *costs, dearer, pairs[0].this[0].generator
    return f"| {' | '.join(map(str, cells))} |"


def _commit(checkout: Path) -> str:
    described = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or checkout.name


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
