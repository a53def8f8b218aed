"""Judges what was seen during an attack."""

import re
from collections import Counter
from dataclasses import dataclass, field

from tests.robustness.case import Case
from tests.robustness.polite import Politeness

_UNESCAPED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")
MARK = "forged-by-an-attacker"
"""Text that attacks put behind a line break where the service may log it."""


@dataclass
class Report:
    """What was seen.

    Attributes:
        case: the attack.
        front: server of the gRPC port.
        outcomes: of the attack.
        polite: what the polite caller saw meanwhile.
        before: memory before the attack, megabytes.
        peak: highest memory.
        after: memory after the attack, once it has settled.
        processes_lost: processes that ended.
        log: what was logged meanwhile.
        error: what ended the attack itself.
    """

    case: Case
    front: str
    outcomes: Counter[str] = field(default_factory=Counter)
    polite: Politeness = field(default_factory=Politeness)
    before: float = 0.0
    peak: float = 0.0
    after: float = 0.0
    processes_lost: int = 0
    log: str = ""
    error: str = ""

    def __str__(self) -> str:
        details = f"; {self.polite.details}" if self.polite.details else ""
        memory = f"memory {self.before:.0f} MB, peak {self.peak:.0f}, after {self.after:.0f}"
        polite = f"polite {dict(self.polite.codes)}, p99 {self.polite.p99_milliseconds} ms"
        log = f"{len(self.log)} characters of log"
        return f"{self.front}, {self.case.name}: {dict(self.outcomes)}; {polite}; {memory}; {log}{details}"


def faults(report: Report) -> list[str]:
    """Returns what breaks the limits of the case, a line each; empty if nothing does."""
    limits, found = report.case.limits, []
    if report.error:
        found.append(f"the attack ended early: {report.error}")
    for kind, count in report.polite.codes.items():
        if not any(kind.endswith(f" {code}") for code in limits.polite):
            found.append(f"the polite caller saw {kind}, {count} times")
    if not any(kind.startswith("image ") for kind in report.polite.codes):
        found.append("the polite caller made no call")
    if report.case.right and not report.outcomes:
        found.append("the attack came to nothing")
    wrong = {kind: count for kind, count in report.outcomes.items() if report.case.right and kind not in report.case.right}
    if wrong:
        found.append(f"the attack ended with {wrong}; right are {sorted(report.case.right)}")
    if report.peak > limits.peak_megabytes:
        found.append(
            f"memory rose from {report.before:.0f} to {report.peak:.0f} MB; the limit is {limits.peak_megabytes:.0f}"
        )
    if report.after > report.before + limits.kept_megabytes:
        found.append(f"{report.after:.0f} MB are held after the attack, {report.before:.0f} before it")
    if limits.same_processes and report.processes_lost:
        found.append(f"{report.processes_lost} processes ended")
    return found + log_faults(report.log)


def log_faults(log: str) -> list[str]:
    """Returns what is wrong with a part of the log, a line each."""
    found = []
    at = log.find("Traceback")
    if at >= 0:
        found.append(f"{log.count('Traceback')} tracebacks in the log: {log[at : at + 1500]!r}")
    if control := _UNESCAPED.search(log):
        found.append(
            f"an unescaped control character in the log: {log[max(0, control.start() - 60) : control.end() + 60]!r}"
        )
    if forged := re.search(rf"^.{{0,40}}{MARK}.*", log, re.MULTILINE):
        found.append(f"a caller has written a line of the log: {forged[0][:200]!r}")
    return found
