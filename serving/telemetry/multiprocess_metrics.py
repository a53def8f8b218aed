"""The metrics of several worker processes as one page, in the files of prometheus_client's multiprocess mode.

Each worker counts in memory-mapped files of its own, and a scrape adds up the files of all workers. A file is named after
the worker's number, not its process id: the replacement of a dead worker continues the same counts. So no count is lost, and
the number of files does not grow with restarts. Exemplars do not work in this mode.
"""

import contextlib
import errno
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
from prometheus_client.registry import Collector

from serving.errors import CannotStart
from serving.telemetry.series_files import SIZES, VERSION_SIZES, SeriesFiles, allocate, merge, value_class

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable for the metrics directory. An operator may set it, and prometheus_client reads it."""

disable_created_metrics()  # as the workers do

_PREFIX = "digits-metrics-"

# Room for the files of so many versions is asked for at the start, in each worker.
_VERSIONS = 4

_WORKER_BYTES = sum(SIZES.values())
_VERSIONS_BYTES = _VERSIONS * sum(VERSION_SIZES.values())


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
            need = math.ceil(workers * (_WORKER_BYTES + _VERSIONS_BYTES) / (1 << 20))
            raise NoRoom(
                f"no room for the metrics of {workers} workers, {need} MiB ({'; '.join(failures)}): free some space, name "
                f"another directory in {DIRECTORY}, or use --workers 1, which needs no such directory"
            )

    def _create(self, parent: Path, workers: int) -> None:
        _remove_abandoned(parent)
        unlocked = Path(tempfile.mkdtemp(prefix=".", suffix="-digits", dir=parent))
        self.lock = _lock(unlocked)
        # Only a locked directory may bear a name that other supervisors look for.
        self.path = unlocked.rename(parent / f"{_PREFIX}{unlocked.name.strip('.')}")
        try:
            for number in range(workers):
                self.reserve(number)
            free = os.statvfs(self.path)
            if free.f_bavail * free.f_frsize < workers * _VERSIONS_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.remove()
            raise

    def reserve(self, number: int) -> None:
        """Creates the missing files of worker `number`, and allocates the disk blocks of its files.

        Raises:
            OSError: the disk has no room for them.
        """
        for kind, size in SIZES.items():
            allocate(self.path / f"{kind}_{number}.db", size)

    def forget(self, number: int) -> None:
        """Drops the live gauges of the dead worker `number`. Its counts stay."""
        for pattern in (f"gauge_live*_{number}.db", f"gauge_live*_{number}-*.db"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def collect(self) -> Iterable[Metric]:
        """Merges the files of all workers."""
        return merge(self.path)

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


def count_as(number: int, directory: Path) -> SeriesFiles:
    """Makes this process count in the files of worker `number`. Call it before the first metric is created."""
    os.environ[DIRECTORY] = str(directory)  # prometheus_client looks whether it is set, to leave exemplars out
    files = SeriesFiles(number, directory)
    values.ValueClass = value_class(files)
    return files


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
