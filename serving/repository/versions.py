"""Model versions on disk: MODELS/NAME/VERSION/model.onnx, VERSION a whole number, and MODELS/NAME/routing.toml."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import CannotStart
from serving.regular_file import read_regular

_MOST_ROUTING_BYTES = 1 << 16


class RepositoryError(CannotStart):
    """The model repository can't be read, or the default model in it can't be served."""


class ModelMissing(RepositoryError):
    """A model has no version in the repository."""

    def __init__(self, models: Path, name: str):
        super().__init__(f"no model in {models}: expected {models / name}/VERSION/model.onnx, VERSION a whole number")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model on disk.

    Attributes:
        number: version number.
        path: ONNX file.
        fingerprint: modification time in nanoseconds, size in bytes and inode of the file; differs once it is rewritten.
    """

    number: int
    path: Path
    fingerprint: tuple[int, ...]


@dataclass(frozen=True)
class ModelDirectory:
    """Directory of one model.

    Attributes:
        versions: versions, by number.
        routing: text of routing.toml; empty if there is no such file.
        routing_error: reason why routing.toml can't be read; empty if it can.
    """

    versions: dict[int, ModelVersion] = field(default_factory=dict)
    routing: str = ""
    routing_error: str = ""


def latest(models: Path, name: str = "digits") -> ModelVersion:
    """Returns the highest version of a model in the model repository `models`.

    Raises:
        ModelMissing: the model has no version.
        RepositoryError: the repository can't be read.
    """
    versions = scan(models).get(name, ModelDirectory()).versions
    if not versions:
        raise ModelMissing(models, name)
    return versions[max(versions)]


def scan(models: Path) -> dict[str, ModelDirectory]:
    """Lists the models in a repository by name, without those that have no version.

    Raises:
        RepositoryError: the repository can't be read.
    """
    try:
        directories = sorted(path for path in models.iterdir() if is_model_name(path.name) and is_directory(path))
        found = {
            directory.name: ModelDirectory(_read_versions(directory), *_read_routing(directory)) for directory in directories
        }
    except OSError as error:
        raise RepositoryError(f"{models} cannot be read: {error.strerror}") from error
    return {name: model for name, model in found.items() if model.versions}


def is_model_name(name: str) -> bool:
    """Returns False for hidden directories, and for names that don't fit into a protobuf string or a metric label."""
    return not name.startswith(".") and name.isprintable() and name == name.encode("utf-8", "replace").decode()


def is_directory(path: Path) -> bool:
    """Returns False also for a directory that can't be looked at: one on a bad disk must not hide the others."""
    try:
        return path.is_dir()
    except OSError:  # such as EIO, or ESTALE of a network disk
        return False


def is_version_number(name: str) -> bool:
    """Returns True for a whole number without leading zeros."""
    return name.isascii() and name.isdecimal() and name == str(int(name))


def _read_versions(directory: Path) -> dict[int, ModelVersion]:
    versions: dict[int, ModelVersion] = {}
    try:
        directories = list(directory.iterdir())
    except OSError:  # one unreadable directory must not hide the other models
        return versions
    for version in directories:
        number = version.name
        if not is_version_number(number):
            continue
        file = version / "model.onnx"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # still without its file, or removed meanwhile
            versions[int(number)] = ModelVersion(int(number), file, _fingerprint(file))
    return versions


def _fingerprint(file: Path) -> tuple[int, ...]:
    """Returns the fingerprint of a file; an empty one if there is a file that can't be looked at.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no file.
    """
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError:  # one file on a bad disk, or behind a loop of links, must not hide the other versions
        return ()
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _read_routing(directory: Path) -> tuple[str, str]:
    """Reads routing.toml; returns its text, and the reason why it can't be read."""
    try:
        return read_regular(directory / "routing.toml", _MOST_ROUTING_BYTES).decode("utf-8-sig"), ""
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        return "", f"it cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        return "", "it is not UTF-8 text"
