"""Published versions teach a recipe that has a teacher, alone or together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.repository.versions import latest
from serving.settings import BUNDLED
from training.__main__ import main
from training.dataset import Dataset
from training.exported import Exported
from training.pipeline import run
from training.recipes import RECIPES
from training.synthesis.mixture import Mixture
from training.teacher import TEACHER, ExportedTeachers, find_teacher
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


def test_a_teacher_that_saw_the_held_out_images_is_known(drawn: Dataset, tmp_path: Path) -> None:
    bundled = latest(BUNDLED, TEACHER).path.parent
    held_out, other = drawn.train[:100], drawn.train[100:200]

    def teacher_with(**entries: str) -> ExportedTeachers:
        version = tmp_path / "version"
        shutil.copytree(bundled, version, dirs_exist_ok=True)
        (version / "run.json").write_text(json.dumps(entries))
        teacher = find_teacher(RECIPES["folded"], [version])
        assert teacher
        return teacher

    same = teacher_with(dataset_sha256=drawn.sha256, validation_sha256=held_out.digest())
    assert not same.may_have_seen(held_out, drawn)
    assert same.may_have_seen(other, drawn)
    assert not teacher_with(dataset_sha256="another", validation_sha256="").may_have_seen(held_out, drawn)
    assert teacher_with().may_have_seen(held_out, drawn), "nobody knows what it was trained on"


def test_the_certificate_says_that_a_teacher_saw_the_held_out_images(
    drawn: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = tmp_path / "teacher"
    shutil.copytree(latest(BUNDLED, TEACHER).path.parent, version)
    seen = {"dataset_sha256": drawn.sha256, "validation_sha256": "other images"}
    (version / "run.json").write_text(json.dumps(seen))
    brief = Mixture(images=200, passes=1, bank=100)
    recipe = replace(RECIPES["folded"], mixture=brief, augmentation=None, validation_images=200, batch_size=20)
    published = run(recipe, drawn, 0, 1, tmp_path / "digits", teacher=find_teacher(recipe, [version]), replace=True)
    assert "a teacher was trained on images that this run holds out" in capsys.readouterr().out
    assert "on some of which a teacher of this version was trained" in (published / "MODEL_CARD.md").read_text()
    assert "on some of which a teacher" in Exported(published / "model.onnx").metadata["certified_on"]


def test_a_recipe_without_a_teacher_refuses_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_teacher(RECIPES["convnet"]) is None
    with pytest.raises(VersionError, match="the recipe convnet takes no teacher"):
        find_teacher(RECIPES["convnet"], [tmp_path])
    assert main(["run", "folded", "--teacher", str(tmp_path), "--data", str(tmp_path), "--models", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("digits-train: ")
