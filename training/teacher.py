"""Teachers: published versions whose answers become a part of the targets of another network."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.special import softmax

from training.dataset import Dataset, Examples
from training.exported import Exported
from training.recipes import Recipe
from training.version_directory import VersionError, newest

TEACHER = "digits-flagship"  # bundled model that teaches by default


class ExportedTeachers:
    """The ONNX files of one or several versions, which answer together.

    Attributes:
        sha256: checksums of the files, hexadecimal, with commas between.
    """

    def __init__(self, exported: Sequence[Exported]):
        self._exported = exported
        self.sha256 = ", ".join(each.sha256 for each in exported)

    def may_have_seen(self, held_out: Examples, dataset: Dataset) -> bool:
        """Tells whether a teacher may have been trained on images that another run on `dataset` holds out.

        False only if each teacher held out the same images, or was trained on another dataset.
        """
        return any(self._saw(each.path.parent / "run.json", held_out, dataset) for each in self._exported)

    @staticmethod
    def _saw(file: Path, held_out: Examples, dataset: Dataset) -> bool:
        try:
            record = json.loads(file.read_text())
            return bool(record["dataset_sha256"] == dataset.sha256 and record["validation_sha256"] != held_out.digest())
        except (OSError, ValueError, KeyError, TypeError):
            return True  # a bare file: nobody knows what it was trained on

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of the digits, (N, 10) float32, for images, (N, 28, 28) uint8.

        They are the geometric mean of the versions' probabilities, scaled to a sum of 1.
        """
        logarithms = [np.log(np.maximum(each.answers(images)[1], 1e-12)) for each in self._exported]
        probabilities: np.ndarray = softmax(np.mean(logarithms, axis=0), axis=1)
        return probabilities


def find_teacher(recipe: Recipe, versions: Sequence[Path] = ()) -> ExportedTeachers | None:
    """Loads the teachers of a recipe: `versions`, or the newest bundled version of `TEACHER`; None if the recipe has none.

    Raises:
        VerificationError: a file is not a valid model.
        VersionError: `versions` are given for a recipe without a teacher, or no version is bundled.
    """
    if not (recipe.mixture and recipe.mixture.teacher):
        if versions:
            raise VersionError(f"the recipe {recipe.name} takes no teacher; leave --teacher out")
        return None
    if not versions:
        bundled = newest(Path(str(files("serving"))) / "models" / TEACHER)
        if bundled is None:
            raise VersionError(f"no teacher is bundled as {TEACHER}; name a version with --teacher")
        versions = [bundled]
    return ExportedTeachers([Exported(version / "model.onnx") for version in versions])
