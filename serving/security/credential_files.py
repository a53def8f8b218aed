"""The files that protect the service - tokens, certificates, keys - read at the start, and again whenever they change."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.errors import CannotStart
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

# How soon a change is looked at a second time.
_SETTLING_SECONDS = 0.5


class CredentialsError(CannotStart):
    """A file of tokens, certificates or keys can't be used; the message names it and says why."""


def read(path: Path) -> bytes:
    """The content of a file. Raises CredentialsError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from error


class CredentialFiles:
    """Files that are taken up together, and again after each change; what can't be used never replaces what could.

    They are read and compared whole, which notices every change: a file that is renamed, a symbolic link that is switched
    (as Kubernetes changes a Secret), two changes in one tick of the file system's clock. A change counts once two reads in a
    row have found the same, and so the writer is done: a list of clients that is half written can look like a shorter one.
    """

    def __init__(self, kind: str, paths: Sequence[Path], take: Callable[[Sequence[bytes]], None], metrics: Metrics):
        """Reads the files, and hands them on.

        Args:
            kind: what they are, as log and metrics name it.
            paths: the files.
            take: makes use of their contents, in the order of `paths`; or leaves everything as it was, and raises
                CredentialsError. After the start it is called in a thread.
            metrics: where failures are counted.

        Raises:
            CredentialsError: a file can't be read or used.
        """
        self._kind = kind
        self._paths = paths
        self._take = take
        self._failures = metrics.credentials_reload_failures.labels(kind)
        contents: Sequence[bytes] = [read(path) for path in paths]
        take(contents)
        self._last: Sequence[bytes] | str = contents  # what the last read found: contents, or why there are none
        self._judged: Sequence[bytes] | str = contents  # the last that was found twice
        self._wrong = ""  # what is wrong with that

    def poll(self) -> bool:
        """Reads the files, and takes them up if they have changed. False while they seem to be changing still."""
        found: Sequence[bytes] | str
        try:
            found = [read(path) for path in self._paths]
        except CredentialsError as error:
            found = str(error)
        settled, self._last = found == self._last, found
        if not settled:
            return False
        if found != self._judged:
            self._judged, self._wrong = found, self._judge(found)
            if self._wrong:
                message = f"{self._wrong}; going on with what was read before"
                log_event(log, logging.ERROR, "credentials_refused", message, kind=self._kind)
            else:
                message = f"{self._kind} read anew: {', '.join(map(str, self._paths))}"
                log_event(log, logging.INFO, "credentials_changed", message, kind=self._kind)
        if self._wrong:
            self._failures.inc()  # at every poll, so that an alert lasts for as long as it is so
        return True

    async def watch(self, poll_seconds: float) -> None:
        """Polls until it is cancelled."""
        settled = True
        while True:
            await asyncio.sleep(poll_seconds if settled else min(poll_seconds, _SETTLING_SECONDS))
            settled = await asyncio.to_thread(self.poll)

    def _judge(self, found: Sequence[bytes] | str) -> str:
        """Takes up what was found; returns what is wrong with it, which is nothing when it was taken up."""
        if isinstance(found, str):
            return found
        try:
            self._take(found)
        except CredentialsError as error:
            return str(error)
        except Exception as error:  # whatever it is, it must not end the watch
            message = f"{self._kind} cannot be used"
            log_event(log, logging.ERROR, "credentials_refused", message, exc_info=True, kind=self._kind)
            return f"{self._paths[0]} cannot be used: {type(error).__name__}"
        return ""
