"""Model versions on disk: MODELS/digits/VERSION/model.onnx, VERSION a whole number, the highest one served."""

from dataclasses import dataclass
from pathlib import Path

BUNDLED = Path(__file__).parent / "models"
"""The model repository inside this package, with the default model."""


class RepositoryError(Exception):
    """The model repository holds nothing that can be served; the message says what was looked for."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model on disk."""

    number: int
    path: Path
    """Its ONNX file."""


def latest(models: Path) -> ModelVersion:
    """The highest version of `digits` in the model repository `models`.

    Raises:
        RepositoryError: there is none.
    """
    versions = [
        ModelVersion(int(file.parent.name), file)
        for file in models.glob("digits/*/model.onnx")
        if file.parent.name.isdecimal()
    ]
    if not versions:
        raise RepositoryError(f"no model in {models}: expected {models}/digits/VERSION/model.onnx, VERSION a whole number")
    return max(versions, key=lambda version: version.number)
