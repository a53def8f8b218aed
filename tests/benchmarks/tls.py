"""The price of TLS: `python -m tests.benchmarks.tls`.

Two services run all the time, one with TLS and one without, and are called by turns on connections that stay open. The table
has medians of the rounds, and the median of their ratios.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import trustme

from serving.loadtest.plan import Plan, Rpc
from tests.benchmarks.cost import measure
from tests.benchmarks.generators import method_name
from tests.support.credentials import Files, issue
from tests.support.service import service

_WORKLOADS: tuple[tuple[Rpc, int, int], ...] = (("recognize", 1, 1), ("recognize", 1, 128), ("batch", 64, 8))


def main() -> None:
    """Measures both services, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as directory:
        files = Files(Path(directory))
        files.put(issue(authority), authority)
        flags = ("--tls-certificate", str(files.certificate), "--tls-key", str(files.key))
        with service() as plain, service(*flags) as encrypted:
            print("| call | callers | calls/s plain | calls/s TLS | TLS, times plain | CPU a call, times plain |")
            print("|---|---:|---:|---:|---:|---:|")
            for rpc, images, callers in _WORKLOADS:
                plan = Plan(rpc=rpc, images=images, callers=callers, seconds=options.seconds)
                pairs = [(measure(plain, plan), measure(encrypted, plan, files.client_ca)) for _ in range(options.rounds)]
                rates = [
                    statistics.median(figures.calls_per_second for figures, _ in kind) for kind in zip(*pairs, strict=True)
                ]
                rate = statistics.median(tls[0].calls_per_second / bare[0].calls_per_second for bare, tls in pairs)
                cpu = statistics.median(tls[1] / bare[1] for bare, tls in pairs)
                name = f"{method_name(rpc)}, {images} image{'s' if images > 1 else ''}"
                print(f"| {name} | {callers} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rate:.2f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
