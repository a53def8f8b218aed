"""The metrics of several worker processes as one, by the multiprocess mode of prometheus_client.

Every worker counts in files of its own, mapped into its memory, and whoever is asked adds all of them up. The files are
named after the worker's number rather than its process, so that the worker which takes the place of a dead one goes on with
its counts: none is lost, and the files never grow in number. What this mode can't do is exemplars.
"""

import contextlib
import fcntl
import math
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from serving.errors import CannotStart

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which an operator says where the directory is to be, and prometheus_client where it is."""

disable_created_metrics()  # as the workers do

_PREFIX = "digits-metrics-"

# Every file that a worker writes, and its size. A disk or /dev/shm that is full would kill a worker (SIGBUS) when it first
# touches a page without a block behind it, so all of them are given their blocks beforehand. A label set of a histogram
# takes 5 KB: this is room for four hundred, where the methods take a dozen, and a model version seven and, of truth from
# every source, twelve more. One of a counter takes 0.2 KB, and truth from every source three hundred and more a version; one
# of a gauge as much, and what a version's training images were like sixty.
_SIZES = {
    "counter": 1 << 20,
    "histogram": 2 << 20,
    "gauge_livesum": 64 << 10,
    "gauge_livemax": 512 << 10,
    "gauge_livemin": 64 << 10,
    "gauge_max": 64 << 10,
    "summary": 64 << 10,
}


class NoRoom(CannotStart):
    """There is no place for the workers' metrics; the message says where one was sought."""


class MetricsDirectory(Collector):
    """The directory with the workers' files, and what they add up to.

    It is locked for as long as anybody who inherited `lock` lives. A supervisor that is killed leaves its directory
    behind, and the next one sweeps it away once the workers that still count in it are gone.

    Attributes:
        path: the directory.
        lock: a file descriptor for the workers to inherit.
    """

    def __init__(self, workers: int, places: Iterable[Path]):
        """Makes the directory in the first of `places` that has room for that many workers.

        Raises:
            NoRoom: none has.
        """
        failures = []
        for parent in places:
            try:
                self._make(parent, workers)
                break
            except OSError as error:
                failures.append(f"{parent}: {error.strerror}")
        else:
            need = math.ceil(workers * sum(_SIZES.values()) / (1 << 20))
            raise NoRoom(
                f"no room for the metrics of {workers} workers, {need} MiB ({'; '.join(failures)}): make some, name "
                f"another directory by {DIRECTORY}, or serve with --workers 1, which needs none"
            )
        self._collector = MultiProcessCollector(None, str(self.path))

    def _make(self, parent: Path, workers: int) -> None:
        _sweep(parent)
        unlocked = Path(tempfile.mkdtemp(prefix=".", suffix="-digits", dir=parent))
        self.lock = _lock(unlocked)
        # Only now may it have a name that another supervisor would look at.
        self.path = unlocked.rename(parent / f"{_PREFIX}{unlocked.name.strip('.')}")
        try:
            for number in range(workers):
                self.reserve(number)
        except OSError:
            self.remove()
            raise

    def reserve(self, number: int) -> None:
        """Sees to it that the worker of that number has the files that it is about to write in.

        Raises:
            OSError: there is no room for them.
        """
        for kind, size in _SIZES.items():
            file = self.path / f"{kind}_{number}.db"
            # Under another name until it is whole: an empty file would fail a scrape.
            making = file if file.exists() else file.with_suffix(".new")
            with making.open("ab") as opened:
                os.posix_fallocate(opened.fileno(), 0, max(size, file.stat().st_size if making is file else 0))
            making.rename(file)

    def forget(self, number: int) -> None:
        """Takes away what the dead worker of that number said of its present; its counts stay."""
        mark_process_dead(number, str(self.path))

    def collect(self) -> Iterable[Metric]:
        """What all the workers' files add up to now."""
        collected: Iterable[Metric] = self._collector.collect()
        return collected

    def remove(self) -> None:
        """Removes it, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def places(named: str) -> list[Path]:
    """Where the directory may be: where an operator says, or else in memory if possible, as no count may wait for a disk."""
    return [Path(named)] if named else [Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp"))]  # noqa: S108 - by mkdtemp


def count_alone() -> str:
    """Has this process count in its own memory; to be called before any metric is made.

    Returns:
        The directory that the environment names, which is for a supervisor to use; empty if it names none.
    """
    # prometheus_client obeys either spelling from when it is imported, and fails, or leaves files that nobody clears away.
    named = [os.environ.pop(name, "") for name in (DIRECTORY, DIRECTORY.lower())]
    values.ValueClass = values.MutexValue
    return named[0] or named[1]


def count_as(number: int, directory: Path) -> None:
    """Has this process count in the files of the worker of that number; to be called before any metric is made."""
    os.environ[DIRECTORY] = str(directory)  # where prometheus_client looks whenever a metric is made
    values.ValueClass = values.MultiProcessValue(lambda: number)


def _lock(directory: Path) -> int:
    """A file descriptor that holds the directory's lock until it, and every copy that others inherit, is closed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep(parent: Path) -> None:
    """Removes the directories there that nobody counts in any more."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or another user's
            descriptor = _lock(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


class SupervisorMetrics:
    """What the supervisor says of its workers, together with what they say themselves, on one registry."""

    def __init__(self, directory: Collector, pids: Callable[[], list[int]]):
        """Collects from `directory`, and the use of this process and of its children `pids` from /proc."""
        self.registry = CollectorRegistry()
        self.registry.register(directory)
        self.registry.register(_ProcessesCollector(pids))
        self.workers = Gauge("digits_workers", "Worker processes that answer calls.", registry=self.registry)
        self.restarts = Counter(
            "digits_worker_restarts",
            "Worker processes started in the place of one that died.",
            registry=self.registry,
        )


class _ProcessesCollector(Collector):
    """The process_ metrics of this process and its children, summed; they began when this process did.

    Memory that several of them share is counted for each.
    """

    def __init__(self, pids: Callable[[], list[int]]):
        self._pids = pids
        self._cpu_seconds = 0.0

    def collect(self) -> Iterator[Metric]:
        own, *others = ({metric.name: metric for metric in _process(pid)} for pid in ["self", *map(str, self._pids())])
        dead = resource.getrusage(resource.RUSAGE_CHILDREN)
        for name, metric in own.items():
            (sample,) = metric.samples
            total = sample.value
            if name != "process_start_time_seconds":
                total += sum(other[name].samples[0].value for other in others if name in other)
            if name == "process_cpu_seconds":
                # A child that ends while this looks could be missed, and a counter must never go down.
                total = self._cpu_seconds = max(self._cpu_seconds, total + dead.ru_utime + dead.ru_stime)
            metric.samples = [sample._replace(value=total)]
            yield metric


def _process(pid: str) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
