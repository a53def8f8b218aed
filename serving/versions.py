"""Model versions on disk: MODELS/NAME/VERSION/model.onnx, VERSION a whole number, and MODELS/NAME/routing.toml."""

from dataclasses import dataclass
from pathlib import Path

from serving.errors import CannotStart


class RepositoryError(CannotStart):
    """The model repository holds nothing that can be served; the message says what was looked for."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model on disk."""

    number: int
    path: Path
    """Its ONNX file."""

    fingerprint: tuple[int, ...]
    """Of the file: another one means that it was written anew."""


def latest(models: Path, name: str = "digits") -> ModelVersion:
    """The highest version of a model in the model repository `models`.

    Raises:
        RepositoryError: there is none.
    """
    versions, _ = scan(models).get(name, ({}, ""))
    if not versions:
        raise RepositoryError(f"no model in {models}: expected {models / name}/VERSION/model.onnx, VERSION a whole number")
    return versions[max(versions)]


def scan(models: Path) -> dict[str, tuple[dict[int, ModelVersion], str]]:
    """By the name of each model, its versions on disk by number, and the text of its routing.toml. Raises OSError."""
    found = {}
    for directory in sorted(path for path in models.iterdir() if path.is_dir() and not path.name.startswith(".")):
        versions = {}
        for file in directory.glob("*/model.onnx"):
            number = file.parent.name
            if not (number.isascii() and number.isdecimal() and number == str(int(number))):
                continue
            try:
                status = file.stat()
            except FileNotFoundError:  # it was removed just now
                continue
            fingerprint = (status.st_mtime_ns, status.st_size, status.st_ino)
            versions[int(number)] = ModelVersion(int(number), file, fingerprint)
        try:
            routing = (directory / "routing.toml").read_text(errors="replace")
        except FileNotFoundError:
            routing = ""
        if versions:
            found[directory.name] = (versions, routing)
    return found
