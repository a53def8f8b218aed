"""Published versions teach a recipe that has a teacher, alone or together."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.repository.versions import latest
from serving.settings import BUNDLED
from training.__main__ import main
from training.exported import Exported
from training.recipes import RECIPES
from training.teacher import TEACHER, find_teacher
from training.version_directory import VersionError

Images = NDArray[np.uint8]


def test_two_teachers_answer_with_the_geometric_mean_of_their_probabilities(images: Images) -> None:
    versions = [latest(BUNDLED, name).path.parent for name in ("digits", TEACHER)]
    teacher = find_teacher(RECIPES["folded"], versions)
    assert teacher is not None
    first, second = (Exported(version / "model.onnx") for version in versions)
    assert teacher.sha256 == f"{first.sha256}, {second.sha256}"
    product = np.sqrt(first.answers(images)[1].astype(np.float64) * second.answers(images)[1])
    taught = teacher(images)
    np.testing.assert_allclose(taught, product / product.sum(axis=1, keepdims=True), atol=1e-5)
    assert np.abs(taught - first.answers(images)[1]).max() > 0.001, "the teachers differ"


def test_without_a_name_the_newest_bundled_flagship_teaches(images: Images) -> None:
    teacher = find_teacher(RECIPES["folded"])
    assert teacher is not None
    newest = Exported(latest(BUNDLED, TEACHER).path)
    assert teacher.sha256 == newest.sha256
    np.testing.assert_allclose(teacher(images[:50]), newest.answers(images[:50])[1], atol=1e-5)


def test_a_recipe_without_a_teacher_refuses_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_teacher(RECIPES["convnet"]) is None
    with pytest.raises(VersionError, match="the recipe convnet takes no teacher"):
        find_teacher(RECIPES["convnet"], [tmp_path])
    assert main(["run", "folded", "--teacher", str(tmp_path), "--data", str(tmp_path), "--models", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("digits-train: ")
