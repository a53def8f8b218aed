"""The metrics of several worker processes as one page, by the multiprocess mode of prometheus_client.

Each worker counts in memory-mapped files of its own, and a scrape adds up the files of all workers. A file is named after
the worker's number, not its process id: the replacement of a dead worker continues the same counts. So no count is lost, and
the number of files stays constant. Exemplars do not work in this mode.
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
"""Environment variable for the metrics directory. An operator may set it, and prometheus_client reads it."""

disable_created_metrics()  # as the workers do

_PREFIX = "digits-metrics-"

# Every file that a worker writes, with its size in bytes. A worker maps its files into memory. On a full disk or /dev/shm,
# the first write to a page without a disk block would kill the worker (SIGBUS), so all blocks are allocated beforehand.
#
# One label set takes 5 KB in a histogram: 2 MiB hold 400 of them. The methods use 12 label sets, a model version 7, and
# truth from all sources 12 more per version. One label set takes 0.2 KB in a counter or gauge: truth from all sources uses
# 300 and more per version, and the drift reference 60 per version.
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
    """No candidate directory has room for the workers' metrics. The message lists the candidates."""


class MetricsDirectory(Collector):
    """The directory with the workers' files. As a collector, it yields the merged metrics of all workers.

    The directory stays locked while any process that inherited `lock` lives. A supervisor that is killed leaves its
    directory behind. The next supervisor removes it, once the last worker that counts in it has ended.

    Attributes:
        path: the directory.
        lock: a file descriptor for the workers to inherit.
    """

    def __init__(self, workers: int, candidates: Iterable[Path]):
        """Creates the directory within the first of `candidates` that has room for the metrics of `workers`.

        Raises:
            NoRoom: no candidate has room.
        """
        failures = []
        for parent in candidates:
            try:
                self._create(parent, workers)
                break
            except OSError as error:
                failures.append(f"{parent}: {error.strerror}")
        else:
            need = math.ceil(workers * sum(_SIZES.values()) / (1 << 20))
            raise NoRoom(
                f"no room for the metrics of {workers} workers, {need} MiB ({'; '.join(failures)}): free some space, name "
                f"another directory in {DIRECTORY}, or use --workers 1, which needs no such directory"
            )
        self._collector = MultiProcessCollector(None, str(self.path))

    def _create(self, parent: Path, workers: int) -> None:
        _remove_abandoned(parent)
        unlocked = Path(tempfile.mkdtemp(prefix=".", suffix="-digits", dir=parent))
        self.lock = _lock(unlocked)
        # Only a locked directory may bear a name that other supervisors look for.
        self.path = unlocked.rename(parent / f"{_PREFIX}{unlocked.name.strip('.')}")
        try:
            for number in range(workers):
                self.reserve(number)
        except OSError:
            self.remove()
            raise

    def reserve(self, number: int) -> None:
        """Creates the missing files of worker `number`, and allocates the disk blocks of all its files.

        Raises:
            OSError: the disk has no room for them.
        """
        for kind, size in _SIZES.items():
            file = self.path / f"{kind}_{number}.db"
            # Under a temporary name until its size is allocated: an empty file would fail a scrape.
            reserved = file if file.exists() else file.with_suffix(".new")
            with reserved.open("ab") as opened:
                os.posix_fallocate(opened.fileno(), 0, max(size, file.stat().st_size if reserved is file else 0))
            reserved.rename(file)

    def forget(self, number: int) -> None:
        """Drops the live gauges of the dead worker `number`. Its counts stay."""
        mark_process_dead(number, str(self.path))

    def collect(self) -> Iterable[Metric]:
        """Merges the files of all workers."""
        collected: Iterable[Metric] = self._collector.collect()
        return collected

    def remove(self) -> None:
        """Deletes the directory with its files, releases the lock, and deletes what killed supervisors have left there."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)
        _remove_abandoned(self.path.parent)


def candidate_directories(named: str) -> list[Path]:
    """Lists the candidates for the parent of the metrics directory.

    Args:
        named: the directory that the operator chose; empty for the default: in memory if possible, because a count must not
            wait for a disk.
    """
    return [Path(named)] if named else [Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp"))]  # noqa: S108 - by mkdtemp


def count_alone() -> str:
    """Makes this process count in its own memory. Call it before the first metric is created.

    Returns:
        The directory that the environment names for a supervisor to use; empty if it names none.
    """
    # prometheus_client follows either spelling from its import on: it would fail, or leave files that no process removes.
    named = [os.environ.pop(name, "") for name in (DIRECTORY, DIRECTORY.lower())]
    values.ValueClass = values.MutexValue
    return named[0] or named[1]


def count_as(number: int, directory: Path) -> None:
    """Makes this process count in the files of worker `number`. Call it before the first metric is created."""
    os.environ[DIRECTORY] = str(directory)  # prometheus_client reads it each time a metric is created
    values.ValueClass = values.MultiProcessValue(lambda: number)


def _lock(directory: Path) -> int:
    """Returns a file descriptor that locks the directory until it and all inherited copies are closed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_abandoned(parent: Path) -> None:
    """Deletes the metrics directories within `parent` that no process counts in any more."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or belongs to another user
            descriptor = _lock(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


class SupervisorMetrics:
    """The metrics of a supervisor: the merged metrics of its workers, and metrics about the workers.

    Attributes:
        registry: all of them, for a scrape.
        workers: worker processes that answer calls.
        restarts: replacements of dead workers.
    """

    def __init__(self, directory: Collector, pids: Callable[[], list[int]]):
        """Registers all collectors.

        Args:
            directory: the workers' metrics.
            pids: lists the process ids of the workers, whose process_ metrics are added to those of this process.
        """
        self.registry = CollectorRegistry()
        self.registry.register(directory)
        self.registry.register(_ProcessesCollector(pids))
        self.workers = Gauge("digits_workers", "Worker processes that answer calls now.", registry=self.registry)
        self.restarts = Counter(
            "digits_worker_restarts", "Worker processes started to replace a dead one.", registry=self.registry
        )


class _ProcessesCollector(Collector):
    """The process_ metrics of this process and its children, summed. The start time is that of this process.

    Memory that several processes share counts once for each of them.
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
                # A child that ends during the collection could be missed, and a counter must never decrease.
                total = self._cpu_seconds = max(self._cpu_seconds, total + dead.ru_utime + dead.ru_stime)
            metric.samples = [sample._replace(value=total)]
            yield metric


def _process(pid: str) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
