"""`make capacity`: measures a replica on this machine, simulates many, and prints the tables of deploy/CAPACITY.md."""

import argparse
import sys
from pathlib import Path

from tests.benchmarks.capacity import hpa, measured, measurement, page, picture


def main() -> None:
    """Measures, or takes what was measured, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, metavar="FILE", help="do not measure, take what is there")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables anew into this page")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the simulations there")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each rate, each round (default: %(default)s)")
    options = parser.parse_args()
    if options.measured:
        found = measured.read(options.measured)
    else:
        found = measurement.measure(options.rounds, options.seconds, lambda text: print(text, file=sys.stderr, flush=True))
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


if __name__ == "__main__":
    main()
