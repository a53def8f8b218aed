"""Verdicts on model files, kept across restarts by the content of the file.

Every verdict is kept in a private directory of this machine. Refusals are also kept in a directory that may be shared with
other machines: a file there can keep a version from being served, but never lets one be served. Only the private directory
says that a file is sound, so that somebody who may publish models can't vouch for them.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from serving.inference.metadata import ENVIRONMENT, REFUSALS
from serving.regular_file import read_regular
from serving.repository.quarantine.examination import Verdict
from serving.settings import BUNDLED, Settings
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_MOST_BYTES = 4096  # of a kept verdict
_MOST_KEPT = 1000  # files in a directory; beyond, the oldest go
_LOCK_POLL_SECONDS = 0.02
_MODE = 0o644  # a machine whose service runs as another user reads the refusals, too
_OWN_NAME = re.compile(r"[0-9a-f]{64}[-.]")  # verdicts, locks, and what a killed process has left half written


class Verdicts:
    """The kept verdicts. Without any writable directory, they last as long as this process."""

    def __init__(self, settings: Settings, conditions: str):
        """Chooses the directories.

        Args:
            settings: the directory of refusals, and the repository in which it lies by default.
            conditions: versions and limits under which a verdict holds.
        """
        self._conditions = hashlib.sha256(conditions.encode()).hexdigest()[:16]
        self._private = _private_directory()
        shared = settings.refusals or (None if settings.models == BUNDLED else settings.models / ".refused")
        self._shared = shared
        self._own: dict[str, tuple[float, Verdict]] = {}
        self._complained = False

    def find(self, digest: str, since: float) -> Verdict | None:
        """Returns the newest verdict on a content; None if there is none.

        Args:
            digest: SHA-256 of the content.
            since: time of `time.time()` before which refusals don't count.
        """
        kept = [self._own[digest]] if digest in self._own else []
        kept += self._load(self._private, digest)
        kept += [(when, verdict) for when, verdict in self._load(self._shared, digest) if verdict.reason]
        kept = [(when, verdict) for when, verdict in kept if not verdict.reason or when >= since]
        return max(kept, key=lambda entry: entry[0])[1] if kept else None

    def keep(self, digest: str, verdict: Verdict) -> None:
        """Keeps a verdict on a content for later starts, and logs if it can't be kept."""
        when = time.time()
        self._own[digest] = (when, verdict)
        errors = []
        for directory in filter(None, (self._private, self._shared)):
            try:
                if directory == self._shared and not verdict.reason:
                    self._file(directory, digest).unlink(missing_ok=True)
                else:
                    self._write(directory, digest, verdict, when)
            except OSError as error:
                errors.append(f"{directory}: {error.strerror}")
        if verdict.reason and (errors or not self._private) and not self._complained:
            self._complained = True
            lasts = "on this machine only" if self._private else "until this process ends"
            message = f"refusals are kept {lasts}; --refusals names a directory that lasts ({'; '.join(errors)})"
            log_event(log, logging.WARNING, "refusals_not_kept", message)

    @asynccontextmanager
    async def lock(self, digest: str, seconds: float) -> AsyncIterator[None]:
        """Lets one process of this machine at a time examine a content; waits for it at most `seconds`."""
        descriptor = -1
        if self._private:
            with contextlib.suppress(OSError):
                descriptor = os.open(self._private / f"{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = time.monotonic() + seconds
            while descriptor >= 0 and time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                await asyncio.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _file(self, directory: Path, digest: str) -> Path:
        return directory / f"{digest}-{self._conditions}.json"

    def _load(self, directory: Path | None, digest: str) -> list[tuple[float, Verdict]]:
        """Reads a kept verdict, with its time; an empty list if there is none that makes sense."""
        if directory is None:
            return []
        try:
            kept = json.loads(read_regular(self._file(directory, digest), _MOST_BYTES))
            when, reason, message = float(kept["time"]), kept["reason"], str(kept["message"])
            if kept["sha256"] != digest:  # the file was renamed or copied
                return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return []
        return [(when, Verdict(reason, message))] if reason in (*REFUSALS, "") and reason != ENVIRONMENT else []

    def _write(self, directory: Path, digest: str, verdict: Verdict, when: float) -> None:
        """Writes a verdict by an atomic rename. Raises OSError."""
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"sha256": digest, "time": when, "reason": verdict.reason, "message": verdict.message})
        # A name of its own for each write: threads write at once, and so do machines whose processes have equal ids.
        descriptor, new = tempfile.mkstemp(".new", f"{digest}.", directory)
        try:
            with os.fdopen(descriptor, "w") as file:
                os.fchmod(descriptor, _MODE)
                file.write(text)
            Path(new).replace(self._file(directory, digest))
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise
        _prune(directory)


def _private_directory() -> Path | None:
    """Creates or finds a directory that only this user can write; None if there is none."""
    for parent in _temporary_directories():
        directory = Path(parent) / f"digits-verdicts-{os.getuid()}"
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, exist_ok=True)
            status = directory.lstat()
            own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
            if own and os.access(directory, os.W_OK | os.X_OK):
                return directory
    return None


def _temporary_directories() -> Sequence[str]:
    with contextlib.suppress(FileNotFoundError):
        return (tempfile.gettempdir(), "/dev/shm")  # noqa: S108 - the directory in it is checked
    return ("/dev/shm",)  # noqa: S108


def _prune(directory: Path) -> None:
    """Removes the oldest of our files from a directory that has too many. Leaves what others have put there."""
    files = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                if _OWN_NAME.match(entry.name):
                    files.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
    for _, path in sorted(files)[: max(0, len(files) - _MOST_KEPT)]:
        with contextlib.suppress(OSError):  # the verdict is kept all the same
            Path(path).unlink()
