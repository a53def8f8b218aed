"""Versions of a model on disk: publishes new versions, reads existing ones, and finds the version of a given run."""

import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.certificates import accepts_by_default
from training.evaluate import DEFAULT_ERROR
from training.model_card import model_card

if TYPE_CHECKING:
    import keras


# Entries of a run record that depend on the thresholds of a version, and all that depend on its file. A version that is made
# from another one must not inherit them.
OF_THRESHOLDS = ("sources", "no_digit", "mail")
OF_FILE = (*OF_THRESHOLDS, "robustness", "damage_mean", "verification")

# Entries that every version has, however it was made.
_ALWAYS = (
    *("recipe", "source", "parameters", "precision", "seed", "commit", "created", "libraries"),
    *("dataset_sha256", "training_images", "validation_images", "validation_sha256", "validation_writers"),
    *("temperature", "validation", "test", "uncalibrated", "drift_reference", "verification"),
    *("certified_on", "certified", "risk", "thresholds", "fields", "accepts_by_default"),
)


class VersionError(Exception):
    """A version is missing or unusable; the message gives the reason."""


def publish(model_directory: Path, make: Callable[[Path], dict[str, Any]], replace: bool = False) -> Path:
    """Lets `make` fill an empty draft directory, adds the run record and model card, and renames the draft to a new version.

    The version number is the UTC time of publication, YYYYMMDDhhmmss, or one more than the highest existing number, so that
    numbers always grow. The directory appears complete or not at all.

    Args:
        model_directory: directory of the model, which holds one directory per version.
        make: fills the draft directory that it is given and returns the run record.
        replace: publishes a version that accepts no digit by default even beside a newest version that accepts some.

    Returns:
        The directory of the new version.

    Raises:
        OSError: the version can't be written.
        VersionError: the version would accept no digit by default, but the newest version accepts some; see `replace`.
    """
    try:
        with tempfile.TemporaryDirectory(dir=model_directory, prefix=".draft-") as scratch:
            draft = Path(scratch) / "version"
            draft.mkdir()
            record = make(draft)
            record = {**record, "accepts_by_default": accepts_by_default(record)}  # read by `make serve`
            if not (replace or record["accepts_by_default"]):
                require_replaceable(model_directory)
            (draft / "run.json").write_text(json.dumps(record, indent=2) + "\n")
            (draft / "MODEL_CARD.md").write_text(model_card(record))
            published = model_directory / str(_next(model_directory))
            draft.rename(published)
    except OSError as error:
        raise OSError(f"cannot write a version into {model_directory}: {error.strerror or error}") from error
    return published


def require_replaceable(model_directory: Path) -> None:
    """Refuses a version that accepts no digit by default where it would replace one that does.

    A service serves the newest version, and a version without certified thresholds rejects everything.

    Raises:
        VersionError: the newest version in the directory accepts digits at the service's default target error rate.
    """
    replaced = newest(model_directory)
    if replaced is not None and accepts_by_default(read_record(replaced)):
        raise VersionError(
            f"the new version would accept no digit at the service's default target error rate of {DEFAULT_ERROR:.1%}, and "
            f"replace {replaced}, which accepts digits. To certify thresholds, hold images out (`run` with "
            "--hold-out 10000) or give more mail (`certify`); with --replace, a service that loads the new version rejects "
            "every digit"
        )


def newest(model_directory: Path) -> Path | None:
    """Returns the version with the highest number in a model's directory; None if the directory has no version."""
    versions = [path for path in model_directory.glob("*") if path.name.isdecimal() and (path / "run.json").is_file()]
    return max(versions, key=_number, default=None)


def read_record(version: Path) -> dict[str, Any]:
    """Reads the run record of a version.

    Raises:
        VersionError: `version` is not a directory that `publish` made, or another release made it.
    """
    try:
        record = json.loads((version / "run.json").read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VersionError(f"{version} is not a version that `digits-train run` made: run.json: {reason}") from error
    if not isinstance(record, dict):
        raise VersionError(f"{version} is not a version that `digits-train run` made: run.json is not a JSON object")
    missing = [entry for entry in _ALWAYS if entry not in record]
    if missing:
        raise VersionError(
            f"{version} is not a version of this release of `digits-train run`: no {missing[0]} in run.json; run the recipe "
            "again"
        )
    return record


def load_network(version: Path) -> "keras.Model":
    """Loads the Keras network of a version: float32 pixels (N, 28, 28, 1) to logits (N, 10).

    Raises:
        VersionError: its model.keras is missing or damaged.
    """
    import keras  # only here: loading Keras takes seconds, which most uses of a version can do without

    file = version / "model.keras"
    try:
        with file.open("rb"):  # Keras reports a damaged file as missing
            return keras.models.load_model(file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = "the file is damaged" if file.is_file() else "the file does not exist"
        raise VersionError(f"{file} can't be loaded: {reason}") from error


def find(directory: Path, fingerprint: str) -> Path | None:
    """Finds the newest float32 version below `directory` whose run has this fingerprint; None if there is no match."""
    found = []
    for file in directory.rglob("run.json"):
        if not file.parent.name.isdecimal() or any(part.startswith(".") for part in file.relative_to(directory).parts):
            continue  # a draft, or a file of another program
        try:
            record = read_record(file.parent)
        except VersionError:
            continue
        if (record.get("fingerprint"), record["precision"]) == (fingerprint, "fp32"):  # a cascade has no fingerprint
            found.append(file.parent)
    return max(found, key=_number, default=None)


def _number(version: Path) -> int:
    return int(version.name)


def _next(model_directory: Path) -> int:
    numbers = [_number(path) for path in model_directory.iterdir() if path.name.isdecimal()]
    return max([int(datetime.now(UTC).strftime("%Y%m%d%H%M%S")), *(number + 1 for number in numbers)])
