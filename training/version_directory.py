"""The versions of a model on disk: where they come to lie, and which of them a run would make again."""

import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras

from training.model_card import model_card


class VersionError(Exception):
    """There is no version where one should be, or it can't be used; the message says why."""


def publish(model_directory: Path, make: Callable[[Path], dict[str, Any]]) -> Path:
    """Has `make` fill an empty directory and give its run record, then moves all that to the next version's place.

    A version is the UTC time of its publication, YYYYMMDDhhmmss, or one more than the highest that there is: it always
    grows. Its directory appears whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=model_directory, prefix=".draft-") as scratch:
            draft = Path(scratch) / "version"
            draft.mkdir()
            record = make(draft)
            (draft / "run.json").write_text(json.dumps(record, indent=2) + "\n")
            (draft / "MODEL_CARD.md").write_text(model_card(record))
            published = model_directory / str(_next(model_directory))
            draft.rename(published)
    except OSError as error:
        raise OSError(f"cannot write a version into {model_directory}: {error.strerror or error}") from error
    return published


def read_record(version: Path) -> dict[str, Any]:
    """The run record of a version.

    Raises:
        VersionError: `version` is no directory that `publish` has made.
    """
    try:
        record = json.loads((version / "run.json").read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VersionError(f"{version} is no version that `digits-train run` made: run.json: {reason}") from error
    if not isinstance(record, dict):
        raise VersionError(f"{version} is no version that `digits-train run` made: run.json is no object")
    return record


def load_network(version: Path) -> keras.Model:
    """The Keras network of a version: float32 pixels (N, 28, 28, 1) to logits (N, 10).

    Raises:
        VersionError: its model.keras is missing or damaged.
    """
    file = version / "model.keras"
    try:
        with file.open("rb"):  # Keras calls a damaged file missing
            return keras.models.load_model(file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = "it is damaged" if file.is_file() else "it is not there"
        raise VersionError(f"{file} can't be loaded: {reason}") from error


def find(directory: Path, fingerprint: str) -> Path | None:
    """The newest float32 version, anywhere below `directory`, that came of the run of this fingerprint; None without one."""
    found = []
    for file in directory.rglob("run.json"):
        if not file.parent.name.isdecimal() or any(part.startswith(".") for part in file.relative_to(directory).parts):
            continue  # a draft, or another program's
        try:
            record = read_record(file.parent)
        except VersionError:
            continue
        if (record.get("fingerprint"), record.get("precision")) == (fingerprint, "fp32"):
            found.append(file.parent)
    return max(found, key=lambda version: int(version.name), default=None)


def _next(model_directory: Path) -> int:
    numbers = [int(path.name) for path in model_directory.iterdir() if path.name.isdecimal()]
    return max([int(datetime.now(UTC).strftime("%Y%m%d%H%M%S")), *(number + 1 for number in numbers)])
