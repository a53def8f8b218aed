"""Runs cases one after another, on as few services as possible."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.robustness.case import Case
from tests.robustness.judge import Report, faults
from tests.robustness.polite import PoliteCaller
from tests.robustness.processes import MemoryWatch, megabytes, settled, tree
from tests.robustness.target import Target
from tests.support.service import ROOT

ATTACK_SECONDS = 90
"""Time after which an attack counts as stuck."""

_SETTLE_SECONDS = 15.0


class Stage:
    """Holds one service and its polite caller, for as long as cases ask for the same front and flags."""

    def __init__(self, directory: Path, checkout: Path = ROOT):
        """Starts nothing yet.

        Args:
            directory: of the services, a directory each.
            checkout: whose service is attacked.
        """
        self._directory, self._checkout = directory, checkout
        self._started = 0
        self._key: tuple[object, ...] | None = None
        self._target: Target | None = None
        self._polite: PoliteCaller | None = None

    async def run(self, case: Case, front: str) -> Report:
        """Runs a case. A service that a case has harmed is replaced before the next one."""
        report = Report(case, front)
        try:
            target, polite = await asyncio.to_thread(self._ready, case, front)
            await self._attack(target, polite, report)
        except (RuntimeError, OSError) as error:
            report.error = report.error or f"{type(error).__name__}: {error}"
        if faults(report) or not case.limits.same_processes:
            self.close()
        return report

    async def _attack(self, target: Target, polite: PoliteCaller, report: Report) -> None:
        await asyncio.to_thread(polite.seen)
        processes, logged = set(tree(target.pid)), len(target.log())
        report.before = megabytes(target.pid)
        watch = MemoryWatch(target.pid)
        try:
            async with asyncio.timeout(ATTACK_SECONDS):
                report.outcomes = await report.case.attack(target)
        except Exception as error:  # a report says so, and the next case goes on
            report.error = f"{type(error).__name__}: {error}"
        kept = report.before + report.case.limits.kept_megabytes
        report.after = await asyncio.to_thread(settled, target.pid, kept, _SETTLE_SECONDS)
        watch.close()
        report.peak = watch.peak
        report.polite = await asyncio.to_thread(polite.seen)
        report.processes_lost = len(processes - set(tree(target.pid)))
        report.log = target.log()[logged:]

    def _ready(self, case: Case, front: str) -> tuple[Target, PoliteCaller]:
        key = front, case.flags, case.log_read
        if self._key != key or self._target is None or self._polite is None:
            self.close()
            self._started += 1
            directory = self._directory / str(self._started)
            directory.mkdir(parents=True)
            self._target = Target(front, directory, case.flags, self._checkout, log_read=case.log_read)
            self._polite = PoliteCaller(self._target.port, self._target.http_port)
            self._key = key
        return self._target, self._polite

    def close(self) -> None:
        """Ends the service and the polite caller."""
        if self._polite is not None:
            self._polite.close()
        if self._target is not None:
            self._target.close()
        self._key = self._polite = self._target = None


@contextmanager
def stage(checkout: Path = ROOT) -> Iterator[Stage]:
    """Runs a stage in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="digits-harm-") as directory:
        one = Stage(Path(directory), checkout)
        try:
            yield one
        finally:
            one.close()
