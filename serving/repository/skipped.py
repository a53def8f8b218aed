"""Directories in a model repository that are not served, or hardly as their names intend: why, for the log."""

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from serving.repository.versions import is_directory, is_model_name, is_version_number
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

# Version numbers of training are the time of the training in UTC. Clocks may differ a little.
_DATED = "%Y%m%d%H%M%S"
_TOLERANCE = timedelta(days=1)


class SkippedDirectories:
    """Logs each directory that the service skips, once it was found in two polls in a row."""

    def __init__(self, models: Path):
        """Looks at nothing yet; `models` is the model repository."""
        self._models = models
        self._found: dict[Path, str] = {}
        self._logged: dict[Path, str] = {}

    def poll(self) -> None:
        """Looks at all directories, and logs those that are new."""
        before, self._found = self._found, skipped(self._models)
        for path, reason in self._found.items():
            if before.get(path) == reason and self._logged.get(path) != reason:
                log_event(log, logging.WARNING, "directory_skipped", f"{path} {reason}", path=str(path), reason=reason)
                self._logged[path] = reason
        self._logged = {path: reason for path, reason in self._logged.items() if path in self._found}


def skipped(models: Path) -> dict[Path, str]:
    """Returns the reason by directory, without hidden directories. What can't be read is not looked at."""
    reasons: dict[Path, str] = {}
    for model in _directories(models):
        if not is_model_name(model.name):
            reasons[model] = "is skipped: no request can carry its name"
        elif not os.access(model, os.R_OK | os.X_OK):
            reasons[model] = "is skipped: this user may not read it"
        else:
            reasons |= {version: reason for version in _directories(model) if (reason := _reason(version))}
    return reasons


def _reason(version: Path) -> str:
    """Returns what is wrong with the directory of a version; empty if nothing is."""
    name = version.name
    if not is_version_number(name):
        return "is skipped: its name is not a whole number without leading zeros"
    if not os.path.lexists(version / "model.onnx"):
        return "is skipped: it holds no model.onnx"
    try:
        dated = datetime.strptime(name, _DATED).replace(tzinfo=UTC)
    except ValueError:
        return ""
    if len(name) == 14 and dated > datetime.now(UTC) + _TOLERANCE:
        return "is dated in the future: it is preferred to every version that is trained until then"
    return ""


def _directories(path: Path) -> list[Path]:
    try:
        return sorted(one for one in path.iterdir() if not one.name.startswith(".") and is_directory(one))
    except OSError:
        return []
