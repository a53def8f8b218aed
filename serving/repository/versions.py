"""Model versions on disk: MODELS/NAME/VERSION/model.onnx, VERSION a whole number, and MODELS/NAME/routing.toml."""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import CannotStart


class RepositoryError(CannotStart):
    """The model repository can't be read, or holds nothing that can be served; the message says what was looked for."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model on disk."""

    number: int
    path: Path
    """Its ONNX file."""

    fingerprint: tuple[int, ...]
    """Of the file: another one means that it was written anew."""


@dataclass(frozen=True)
class OnDisk:
    """What there is of one model on disk.

    Attributes:
        versions: its versions, by number.
        routing: the text of its routing.toml; empty when there is none.
        trouble: why that can't be read; empty when it can.
    """

    versions: dict[int, ModelVersion] = field(default_factory=dict)
    routing: str = ""
    trouble: str = ""


def latest(models: Path, name: str = "digits") -> ModelVersion:
    """The highest version of a model in the model repository `models`.

    Raises:
        RepositoryError: there is none, or it can't be read.
    """
    versions = scan(models).get(name, OnDisk()).versions
    if not versions:
        raise absent(models, name)
    return versions[max(versions)]


def absent(models: Path, name: str) -> RepositoryError:
    """That there is no version of a model."""
    return RepositoryError(f"no model in {models}: expected {models / name}/VERSION/model.onnx, VERSION a whole number")


def scan(models: Path) -> dict[str, OnDisk]:
    """What there is of each model, by its name; models without a version are left out. Raises RepositoryError."""
    try:
        directories = sorted(path for path in models.iterdir() if path.is_dir() and _is_name(path.name))
        found = {directory.name: OnDisk(_versions(directory), *_routing(directory)) for directory in directories}
    except OSError as error:
        raise RepositoryError(f"{models} cannot be read: {error.strerror}") from error
    return {name: model for name, model in found.items() if model.versions}


def _is_name(name: str) -> bool:
    """Whether a directory can be called a model: not what is hidden, nor what no message or metric could say."""
    return not name.startswith(".") and name.isprintable() and name == name.encode("utf-8", "replace").decode()


def _versions(directory: Path) -> dict[int, ModelVersion]:
    versions: dict[int, ModelVersion] = {}
    if not os.access(directory, os.R_OK | os.X_OK):  # which must not keep the other models from being seen
        return versions
    for file in directory.glob("*/model.onnx"):
        number = file.parent.name
        if not (number.isascii() and number.isdecimal() and number == str(int(number))):
            continue
        with contextlib.suppress(FileNotFoundError):  # it was removed just now
            status = file.stat()
            fingerprint = (status.st_mtime_ns, status.st_size, status.st_ino)
            versions[int(number)] = ModelVersion(int(number), file, fingerprint)
    return versions


def _routing(directory: Path) -> tuple[str, str]:
    """The text of routing.toml, and why it can't be read."""
    try:
        return (directory / "routing.toml").read_text("utf-8"), ""
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        return "", f"it cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return "", "it is not UTF-8 text"
