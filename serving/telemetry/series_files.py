"""The files in which a worker counts: one set for the worker, and one set for each model version.

Every value of a metric has a place in a file that is mapped into memory. On a full disk or /dev/shm, the first write to a
page without a disk block would kill the worker (SIGBUS). So all blocks of a file are allocated before it is mapped or grows.
A series that finds no room is dropped: it is counted in this process, and shows nowhere.

    KIND_WORKER.db              series without a version: counter_0.db, gauge_livemax_0.db
    KIND_WORKER-VERSION.db      series of one version of a model; VERSION is a hash of both names

Only a worker writes its files, and only its supervisor deletes those of its live gauges once it is dead. The series of a
version end when its files are deleted. No other series is touched, so no other count goes backwards.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

SIZES = {
    "counter": 128 << 10,
    "histogram": 128 << 10,
    "gauge_livesum": 16 << 10,
    "gauge_livemax": 16 << 10,
    "gauge_livemin": 16 << 10,
    "gauge_max": 16 << 10,
    "summary": 16 << 10,
}
"""The files of a worker, and the bytes that are allocated for each at first. A series takes 0.2 KB, in a histogram 5 KB."""

VERSION_SIZES = {
    "counter": 16 << 10,
    "histogram": 64 << 10,
    "gauge_livesum": 4 << 10,
    "gauge_livemax": 4 << 10,
    "gauge_max": 4 << 10,
    "summary": 4 << 10,
}
"""The files of one version in one worker, likewise."""


_TRIES = 5  # to read a set of files of which some are deleted meanwhile


def version_key(model: str, version: str) -> str:
    """Returns the part of a file name that stands for a version of a model."""
    return hashlib.sha256(f"{model}\0{version}".encode()).hexdigest()[:16]


def allocate(file: Path, size: int) -> None:
    """Allocates the disk blocks of a file, up to `size` bytes or its own size; creates it if it is missing.

    Raises:
        OSError: the disk has no room for them.
    """
    # Under a temporary name until its size is allocated: an empty file would fail a scrape.
    reserved = file if file.exists() else file.with_suffix(".new")
    try:
        with reserved.open("ab") as opened:
            os.posix_fallocate(opened.fileno(), 0, max(size, os.fstat(opened.fileno()).st_size))
    except OSError:
        if reserved is not file:
            reserved.unlink(missing_ok=True)
        raise
    reserved.rename(file)


def merge(directory: Path) -> Iterable[Metric]:
    """Adds up the files of all workers in a directory.

    Raises:
        FileNotFoundError: files of versions were deleted again and again meanwhile.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # the series of a version ended meanwhile
            return _merge(directory)
    return _merge(directory)


def _merge(directory: Path) -> Iterable[Metric]:
    merged: Iterable[Metric] = MultiProcessCollector.merge([str(file) for file in directory.glob("*.db")])
    return merged


class _AllocatedDict(MmapedDict):
    """A file of values whose disk blocks are allocated before it grows."""

    def __init__(self, path: Path):
        """Maps a file that `allocate` has made."""
        super().__init__(str(path))  # type: ignore[no-untyped-call]
        self._path = path
        self._f.close()  # the mapping needs no open file

    def read(self, key: str) -> float:
        """Returns a value, which is added at 0 if it is missing. Raises OSError if the disk has no room for it."""
        value: float = self.read_value(key)[0]  # type: ignore[no-untyped-call]
        return value

    def _init_value(self, key: str) -> None:
        """Adds a value. Raises OSError, and changes nothing, if the disk has no room for it."""
        size = len(key.encode()) + 64  # more than the value takes with its padding
        capacity = self._capacity
        while self._used + size > capacity:
            capacity *= 2
        if capacity > self._capacity:
            with self._path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, capacity)
                self._m = mmap.mmap(file.fileno(), capacity)
            self._capacity = capacity
        super()._init_value(key)  # type: ignore[no-untyped-call]


class SeriesFiles:
    """The files of one worker, and the values in them.

    Attributes:
        worker: number of the worker.
        directory: the metrics directory of all workers.
        lock: held while a value is read or written.
        dropped: series that found no room.
    """

    def __init__(self, worker: int, directory: Path):
        """Opens no file yet.

        Args:
            worker: number of the worker.
            directory: the metrics directory of all workers.
        """
        self.worker = worker
        self.directory = directory
        self._files: dict[tuple[str, str], _AllocatedDict | None] = {}  # by version and kind; None if there is no room
        self.lock = threading.Lock()
        self.dropped = 0
        self._unreported = ""  # reason why the first series was dropped, until the log has it

    def open_value(self, kind: str, key: str, version: str) -> _AllocatedDict | None:
        """Returns the file that holds a value; None if there is no room for it. Hold the lock.

        Args:
            kind: kind of the file.
            key: key of the value.
            version: key of the model version; empty for a series without one.
        """
        try:
            if (version, kind) not in self._files:
                self._files[version, kind] = self._open(kind, version)
            file = self._files[version, kind]
            if file is not None:
                file.read(key)
        except OSError as error:
            self._files.setdefault((version, kind), None)
            file = None
            # Not logged here: where the log is full, it counts the lost line, which takes the lock that is held.
            self._unreported = self._unreported if self.dropped else error.strerror or str(error)
        if file is None:
            self.dropped += 1
        return file

    def report_dropped(self) -> int:
        """Logs the first series that was dropped, once, and returns how many were. Don't hold the lock."""
        with self.lock:
            reason, self._unreported = self._unreported, ""
        if reason:
            message = f"no room for metrics in {self.directory}: {reason}; series are missing from now on"
            log_event(log, logging.ERROR, "metrics_dropped", message, path=str(self.directory))
        return self.dropped

    def release(self, version: str) -> None:
        """Lets go of the files of a version. Values that are still held count on where no one sees them after `delete`."""
        with self.lock:
            for kind in VERSION_SIZES:
                self._files.pop((version, kind), None)

    def delete(self, version: str) -> None:
        """Deletes the files of a version, except a version that counts again. Raises OSError."""
        with self.lock:
            if not any((version, kind) in self._files for kind in VERSION_SIZES):
                for kind in VERSION_SIZES:
                    self._path(kind, version).unlink(missing_ok=True)

    def versions(self) -> set[str]:
        """Returns the versions that have files: of this process, and of previous workers of the same number."""
        return {file.stem.rpartition("-")[2] for file in self.directory.glob(f"*_{self.worker}-*.db")}

    def _open(self, kind: str, version: str) -> _AllocatedDict:
        path = self._path(kind, version)
        allocate(path, (VERSION_SIZES if version else SIZES)[kind])
        return _AllocatedDict(path)

    def _path(self, kind: str, version: str) -> Path:
        return self.directory / (f"{kind}_{self.worker}-{version}.db" if version else f"{kind}_{self.worker}.db")


def value_class(files: SeriesFiles) -> type:
    """Returns the class of values for prometheus_client, which it creates for each series."""

    class FileValue:
        """A float in a file."""

        _multiprocess = True

        def __init__(
            self,
            typ: str,
            metric_name: str,
            name: str,
            labelnames: Sequence[str],
            labelvalues: Sequence[str],
            help_text: str,
            multiprocess_mode: str = "",
            **_: Any,
        ):
            labels = dict(zip(labelnames, labelvalues, strict=True))
            version = version_key(labels["model"], labels["version"]) if labels.get("version") and "model" in labels else ""
            self._key = mmap_key(metric_name, name, [*labelnames], [*labelvalues], help_text)
            with files.lock:
                self._file = files.open_value(f"{typ}_{multiprocess_mode}" if multiprocess_mode else typ, self._key, version)
                self._value = self._file.read(self._key) if self._file else 0.0

        def inc(self, amount: float) -> None:
            with files.lock:
                self._value += amount
                if self._file:
                    self._file.write_value(self._key, self._value, 0.0)  # type: ignore[no-untyped-call]

        def set(self, value: float, timestamp: float | None = None) -> None:
            with files.lock:
                self._value = value
                if self._file:
                    self._file.write_value(self._key, value, timestamp or 0.0)  # type: ignore[no-untyped-call]

        def get(self) -> float:
            with files.lock:
                return self._value

        def set_exemplar(self, exemplar: object) -> None:
            """Does nothing: the files have no place for exemplars."""

        def get_exemplar(self) -> None:
            """Returns None."""

    return FileValue
