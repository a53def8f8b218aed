"""`make capacity`: measures a replica on this machine, simulates many, and prints the tables of deploy/CAPACITY.md."""

import argparse
import sys
from pathlib import Path

from tests.benchmarks.capacity import hpa, measured, measurement, page, picture

_LEAST_SECONDS = 1.5


def main() -> None:
    """Measures, or takes what was measured, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, metavar="FILE", help="do not measure, take what is there")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables anew into this page")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the simulations there")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each rate, each round (default: %(default)s)")
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        help="seconds to wait for what others do here, in all (default: %(default)g)",
    )
    options = parser.parse_args()
    if options.seconds < _LEAST_SECONDS:
        parser.error(f"--seconds must be {_LEAST_SECONDS} at least: a stream is looked at twice a second")
    if options.measured:
        found = measured.read(options.measured)
    else:
        found = measurement.measure(options.rounds, options.seconds, options.patience, _say)
    if options.save:
        measured.write(found, options.save)
        found = measured.read(options.save)  # rounded, as the next one will have it
    autoscaling = hpa.read()
    tables = page.tables(found, autoscaling)
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
    if options.page:
        options.page.write_text(page.written(options.page.read_text(), tables))
    if options.png:
        picture.draw(found, autoscaling, options.png)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
