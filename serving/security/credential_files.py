"""Credential files: tokens, certificates and keys, read at start and reloaded when they change."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.disk_thread import on_disk_thread
from serving.errors import CannotStart
from serving.regular_file import read_regular
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

# Interval between the two reads that confirm a change.
_SETTLING_SECONDS = 0.5

_MOST_BYTES = 4 << 20  # of a file; ten thousand clients take 1.5 MB


class CredentialsError(CannotStart):
    """A file of tokens, certificates or keys can't be used; the message names the file and the reason."""


def read(path: Path) -> bytes:
    """Reads a regular file of at most 4 MiB. Raises CredentialsError."""
    try:
        return read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from error


class CredentialFiles:
    """Files that belong together and are reloaded together; invalid files never replace valid ones.

    Each poll reads the files whole and compares the content. This detects every kind of change: a rename, a symbolic link
    that is switched (as Kubernetes updates a Secret), two writes within one tick of the file system's clock.

    Files that are refused are tried again at every poll. The cause may lie outside them and end, as when a certificate is
    not valid yet, no file can be opened, or a trial took too long. A reason is logged once, while it stays the same.

    A change is applied once two reads in a row find the same content. A half-written list of clients can look like a valid
    shorter list, and must not lock clients out.
    """

    def __init__(self, kind: str, paths: Sequence[Path], apply: Callable[[Sequence[bytes]], None], metrics: Metrics):
        """Reads the files and applies them.

        Args:
            kind: name of these files in logs and metrics.
            paths: the files.
            apply: takes their contents, in the order of `paths`. Raises CredentialsError, and changes nothing, if they are
                invalid. After the start it is called on a thread.
            metrics: counts reloads that fail.

        Raises:
            CredentialsError: a file can't be read or is invalid.
        """
        self._kind = kind
        self._paths = paths
        self._apply = apply
        self._failures = metrics.credentials_reload_failures.labels(kind)
        contents: Sequence[bytes] = [read(path) for path in paths]
        apply(contents)
        self._last_read: Sequence[bytes] | str = contents  # contents, or the error of reading them
        self._last_settled: Sequence[bytes] | str = contents  # the latest that two reads in a row have found
        self._error = ""  # reason why self._last_settled can't be used

    def poll(self) -> bool:
        """Reads the files, and applies them if they have changed. Returns False while they still change."""
        found: Sequence[bytes] | str
        try:
            found = [read(path) for path in self._paths]
        except CredentialsError as error:
            found = str(error)
        settled, self._last_read = found == self._last_read, found
        if not settled:
            return False
        if found != self._last_settled or self._error:
            if found != self._last_settled:
                self._error = ""
            self._last_settled = found
            self._error = self._try_to_apply(found)
            if not self._error:
                message = f"{self._kind} reloaded: {', '.join(map(str, self._paths))}"
                log_event(log, logging.INFO, "credentials_changed", message, kind=self._kind)
        if self._error:
            self._failures.inc()  # at every poll, so that an alert on the rate lasts until the files are repaired
        return True

    async def watch(self, poll_seconds: float) -> None:
        """Polls until cancelled."""
        settled, unpolled = True, False
        while True:
            await asyncio.sleep(poll_seconds if settled else min(poll_seconds, _SETTLING_SECONDS))
            try:
                settled = await on_disk_thread(self.poll)
                unpolled = False
            except RuntimeError:  # no thread could be started, as where the number of processes is limited
                self._failures.inc()
                if not unpolled:
                    message = f"{self._kind} cannot be polled; the previous content stays in use"
                    log_event(log, logging.ERROR, "credentials_refused", message, exc_info=True, kind=self._kind)
                settled, unpolled = True, True

    def _try_to_apply(self, found: Sequence[bytes] | str) -> str:
        """Applies contents; returns the reason why they can't be used, empty on success. Logs a reason that is new."""
        bug = False
        try:
            if not isinstance(found, str):
                self._apply(found)
                return ""
            error = found
        except CredentialsError as refusal:
            error = str(refusal)
        except Exception as unexpected:  # it must not end the watch
            error, bug = f"{self._paths[0]} cannot be used: {type(unexpected).__name__}", True
        if error != self._error:
            message = f"{error}; the previous content stays in use"
            log_event(log, logging.ERROR, "credentials_refused", message, exc_info=bug, kind=self._kind)
        return error
