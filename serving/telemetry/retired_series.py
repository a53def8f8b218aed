"""Ends the series of model versions that no longer serve, so that the metrics do not grow with history."""

import time
from collections.abc import Set

from serving.telemetry.metrics import Metrics
from serving.telemetry.series_files import version_key

_KEPT_SECONDS = 3600.0
"""Time for the series of a version that is no longer on disk: for the last scrapes, and for truth that comes late."""

_KEPT_VERSIONS = 10
"""Versions without a role whose series stay, at most."""

_Version = tuple[str, str]  # model, version


class RetiredSeries:
    """Follows which versions serve, and lets go of the series of the others.

    A version keeps its series while it has a role or is refused. Of the others, the ten that served last keep theirs: as
    long as they are on disk, and else for an hour. A version that serves again begins at 0, as after a restart.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._since: dict[_Version, float] = {}  # when a version was found without a role, in that order; time.monotonic
        self._known: set[_Version] = set()  # versions with series in this process
        self._forgotten: set[str] = set()  # keys of versions whose files are to be deleted
        self._left_since: dict[str, float] = {}  # the same for versions whose files a previous worker has left

    def expire(self, serving: Set[_Version], on_disk: Set[_Version]) -> None:
        """Removes the series whose time has come; `delete_files` then deletes their files.

        Call it where versions are given their roles, so that none of `serving` changes meanwhile.

        Args:
            serving: versions with a role, and those that are refused.
            on_disk: versions in the repository.
        """
        now = time.monotonic()
        self._known = self._metrics.versions()
        self._since = {version: since for version, since in self._since.items() if version in self._known - serving}
        for version in sorted(self._known - serving - self._since.keys()):
            self._since[version] = now
        surplus = len(self._since) - _KEPT_VERSIONS
        for place, (version, since) in enumerate([*self._since.items()]):
            if place < surplus or (version not in on_disk and now - since >= _KEPT_SECONDS):
                self._metrics.forget(version)
                del self._since[version]
                self._known.discard(version)
                self._forgotten.add(version_key(*version))

    def delete_files(self) -> None:
        """Deletes the files of the series whose time has come. It waits for the disk; on any thread.

        A version that serves again meanwhile keeps its files.

        Raises:
            OSError: files can't be deleted; the next call tries again.
        """
        for key in [*self._forgotten]:
            self._metrics.delete_files(key)
            self._forgotten.discard(key)
        now = time.monotonic()
        left = self._metrics.left_by_others(self._known)
        self._left_since = {key: self._left_since.get(key, now) for key in sorted(left)}
        surplus = len(self._left_since) - _KEPT_VERSIONS
        for place, (key, since) in enumerate([*self._left_since.items()]):
            if place < surplus or now - since >= _KEPT_SECONDS:
                self._metrics.delete_files(key)
