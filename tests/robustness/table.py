"""The reports of all cases as a table: `python -m tests.robustness.table`, or `make harm OTHER=../before`.

With another checkout, each case runs on the service of that checkout first, with the packages of this environment. Times
hold for a machine that does nothing else: on a busy one, compare codes and memory only.
"""

import argparse
import asyncio
import os
import subprocess
from pathlib import Path

from tests.robustness.case import BOTH, Case
from tests.robustness.cases import CASES
from tests.robustness.judge import Report, faults, log_faults
from tests.robustness.stage import stage
from tests.support.environment import unset_machine_variables
from tests.support.service import ROOT

_LONGEST = 120  # characters of a cell


async def print_rows(checkout: Path, cases: list[Case], front: str) -> None:
    """Runs cases on the service of a checkout, and prints the row of each."""
    with stage(checkout) as one:
        for case in cases:
            print(row(await one.run(case, front)), flush=True)


def row(report: Report) -> str:
    """Formats a report as a row: outcomes, codes and p99 of the polite caller, memory, log, verdict."""
    codes = {"OK": 0}
    for kind, count in report.polite.codes.items():
        name = "OK" if kind.endswith(" OK") else kind
        codes[name] = codes.get(name, 0) + count
    outcomes = ", ".join(f"{name} {count}" for name, count in report.outcomes.most_common()) or "-"
    memory = f"{report.before:.0f}, {report.peak:.0f}, {report.after:.0f}"
    log = "; ".join(fault.partition(":")[0] for fault in log_faults(report.log)) or f"{len(report.log):,} characters"
    polite = ", ".join(f"{name} {count}" for name, count in codes.items())
    verdict = "kept" if not faults(report) else "broken"
    cells = [report.case.name, outcomes, polite, f"{report.polite.p99_milliseconds:.0f}", memory, log, verdict]
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ')[:_LONGEST] for cell in cells)} |"


def main() -> None:
    """Prints a table for the other checkout, if there is one, and a table for this one."""
    parser = argparse.ArgumentParser(prog="tests.robustness.table", description=__doc__)
    parser.add_argument("--other", type=Path, help="a checkout to attack first")
    parser.add_argument("--front", choices=BOTH, default=BOTH[0], help="(default: %(default)s)")
    parser.add_argument("--only", default="", help="words that the name of a case must have")
    options = parser.parse_args()
    unset_machine_variables(os.environ)
    chosen = [case for case in CASES if options.front in case.fronts and options.only in case.name]
    chosen.sort(key=lambda case: (case.flags, not case.log_read))
    for checkout in filter(None, (options.other, ROOT)):
        described = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
        print(f"\n{described.stdout.strip()}, front {options.front}\n")
        print("| attack | outcomes | polite caller | p99, ms | memory before, peak, after, MB | log | limits |")
        print("|---|---|---|---:|---|---|---|")
        asyncio.run(print_rows(checkout.resolve(), chosen, options.front))


if __name__ == "__main__":
    main()
