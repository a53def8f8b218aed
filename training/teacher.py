"""Teachers: published versions whose answers become a part of the targets of another network."""

from importlib.resources import files
from pathlib import Path

import numpy as np

from training.exported import Exported
from training.recipes import Recipe
from training.version_directory import VersionError, newest

TEACHER = "digits-flagship"  # bundled model that teaches by default


class ExportedTeacher:
    """The ONNX file of a version.

    Attributes:
        sha256: checksum of the file, hexadecimal.
    """

    def __init__(self, file: Path):
        """Loads the file.

        Raises:
            VerificationError: the file is missing or is not a valid model.
        """
        self._exported = Exported(file)
        self.sha256 = self._exported.sha256

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of the digits, (N, 10) float32, for images, (N, 28, 28) uint8."""
        return self._exported.answers(images)[1]


def find_teacher(recipe: Recipe, version: Path | None) -> ExportedTeacher | None:
    """Loads the teacher of a recipe: `version`, or the newest bundled version of `TEACHER`; None if the recipe has none.

    Raises:
        VerificationError: its file is not a valid model.
        VersionError: `version` is given for a recipe without a teacher, or no version is bundled.
    """
    if not (recipe.mixture and recipe.mixture.teacher):
        if version:
            raise VersionError(f"the recipe {recipe.name} takes no teacher; leave --teacher out")
        return None
    if version is None:
        version = newest(Path(str(files("serving"))) / "models" / TEACHER)
        if version is None:
            raise VersionError(f"no teacher is bundled as {TEACHER}; name a version with --teacher")
    return ExportedTeacher(version / "model.onnx")
