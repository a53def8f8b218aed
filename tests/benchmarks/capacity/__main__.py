"""`make capacity`: measures a replica on this machine and prints the tables of deploy/CAPACITY.md for it."""

import argparse
import sys
from pathlib import Path

from deploy.capacity import hpa, measured, page
from tests.benchmarks.capacity import measurement

_MIN_SECONDS = 1.5


def main() -> None:
    """Measures, simulates, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the measurement to this file, as JSON")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each rate (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each measurement (default: %(default)s)")
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        help="seconds to wait, in total, while other work keeps this machine busy (default: %(default)g)",
    )
    options = parser.parse_args()
    if options.seconds < _MIN_SECONDS:
        parser.error(
            f"--seconds is {options.seconds:g}, expected {_MIN_SECONDS} or more: a stream is sampled twice a second"
        )
    found = measurement.measure(options.rounds, options.seconds, options.patience, _report)
    if options.save:
        measured.write(found, options.save)
        found = measured.read(options.save)  # with the rounded numbers that the committed page uses
    for name, table in page.tables(found, hpa.read()).items():
        print(f"{name}\n\n{table}\n")


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
