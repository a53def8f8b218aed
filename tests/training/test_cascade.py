"""A cascade is one file that answers as its two stages do, image by image."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from serving.inference.model import open_model
from tests.support.networks import build
from training.__main__ import main
from training.cascade.graph import join
from training.cascade.stages import Stages
from training.combine import combine
from training.dataset import Dataset, DatasetError
from training.exported import Exported, VerificationError
from training.verify import verify_version
from training.version_directory import VersionError

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Exported]:
    """Two untrained networks, exported at different temperatures."""
    from training.export import export

    files = [tmp_path_factory.mktemp(name) / "model.onnx" for name in ("folded", "flagship_whole")]
    for file, temperature in zip(files, (0.4, 0.7), strict=True):
        onnx.save(export(build(file.parent.name[:-1]), temperature, {"temperature": str(temperature)}), file)
    return Exported(files[0]), Exported(files[1])


def joined(stages: tuple[Exported, Exported], threshold: float, file: Path, temperature: float = 1.0) -> Exported:
    first, second = (onnx.load(stage.path) for stage in stages)
    onnx.save(join(first, second, threshold, temperature, {}), file)
    return Exported(file)


def middle_threshold(stages: tuple[Exported, Exported], images: Images) -> float:
    return float(np.median(stages[0].answers(images)[1].max(axis=1)))


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_the_file_answers_as_its_stages_in_batches_of_any_size(
    batch: int, stages: tuple[Exported, Exported], images: Images, tmp_path: Path
) -> None:
    threshold = middle_threshold(stages, images[:200])
    cascade = joined(stages, threshold, tmp_path / "model.onnx", temperature=1.3)
    expected_logits, expected_whole = Stages(*stages, threshold)(images[:200])
    logits, probabilities, whole = cascade.outputs(images[:200], batch)
    assert whole is not None
    assert expected_whole is not None
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole, expected_whole, atol=1e-5)
    powers = np.exp(logits / 1.3)
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


def test_sure_images_get_the_first_stages_answer_and_unsure_ones_a_mean(
    stages: tuple[Exported, Exported], images: Images, tmp_path: Path
) -> None:
    threshold = middle_threshold(stages, images)
    logits, whole = joined(stages, threshold, tmp_path / "model.onnx").uncalibrated_answers(images)
    first_whole = stages[0].outputs(images)[2]
    assert whole is not None
    assert first_whole is not None
    firsts, seconds = (np.log(stage.answers(images)[1]) for stage in stages)
    confidence = np.exp(firsts.max(axis=1))
    sure = confidence >= threshold * 1.0001
    assert 0.3 < sure.mean() < 0.7
    np.testing.assert_allclose(logits[sure], firsts[sure], atol=1e-4)
    np.testing.assert_allclose(whole[sure], first_whole[sure], atol=1e-5)
    half = confidence < 0.94 * threshold
    assert half.sum() > 20
    np.testing.assert_allclose(logits[half], (firsts[half] + seconds[half]) / 2, atol=1e-4)


def test_an_answer_hardly_changes_where_an_image_begins_to_go_on(
    stages: tuple[Exported, Exported], images: Images, tmp_path: Path
) -> None:
    confidence = float(stages[0].answers(images[:1])[1].max())
    below, above = (
        joined(stages, confidence * factor, tmp_path / "model.onnx").answers(images[:1])[0]
        for factor in (0.999999, 1.000001)
    )
    np.testing.assert_allclose(below, above, atol=1e-3)
    far = joined(stages, confidence * 1.2, tmp_path / "model.onnx").answers(images[:1])[0]
    assert np.abs(far - below).max() > 0.1, "the second stage has another opinion"


def test_quantised_stages_stay_integers_on_both_sides_of_the_branch(
    stages: tuple[Exported, Exported], images: Images, tmp_path: Path
) -> None:
    from training.quantize import quantize

    calibration = np.concatenate([images[:100], 255 - images[:100]])
    first, second = (quantize(onnx.load(stage.path), calibration) for stage in stages)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hides the warning that the optimised file suits this machine only
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    model = join(first, second, 0.5, 1, {})
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    branch = next(node for node in graph.node if node.op_type == "If")
    inside = next(attribute.g for attribute in branch.attribute if attribute.name == "then_branch")
    outer, inner = (Counter(node.op_type for node in part.node) for part in (graph, inside))
    assert (outer["QLinearConv"], outer["Conv"]) == (3, 0)
    assert (inner["QLinearConv"], inner["Conv"]) == (5, 0)


@pytest.fixture(scope="module")
def repository(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with two versions that were trained for a moment, `first/1` and `second/1`."""
    from training import pipeline
    from training.recipes import RECIPES
    from training.synthesis.mixture import Mixture

    repository = tmp_path_factory.mktemp("models")
    brief = Mixture(images=1000, passes=1, bank=100, teacher=0)
    for epochs, name in enumerate(("first", "second"), start=1):
        recipe = replace(RECIPES["folded"], mixture=brief, augmentation=None, validation_images=200, batch_size=20)
        (repository / name).mkdir()
        pipeline.run(recipe, drawn, 0, epochs, repository / name).rename(repository / name / "1")
    return repository


def test_a_cascade_is_published_verified_and_served(repository: Path, drawn: Dataset) -> None:
    first, second = repository / "first" / "1", repository / "second" / "1"
    version = combine(first, second, drawn, "both", 0.2, replace=True)
    assert version.parent == repository / "both"
    record = json.loads((version / "run.json").read_text())
    assert [(stage["model"], stage["version"]) for stage in record["cascade"]["stages"]] == [("first", "1"), ("second", "1")]
    assert 0 < record["cascade"]["sent_on"]["held_out"] <= 0.2, "fewer where the highest confidences are equal"
    assert "then `folded` (second 1" in (version / "MODEL_CARD.md").read_text()
    evaluation, verification = verify_version(version, drawn.test)
    assert evaluation.accuracy == record["test"]["accuracy"]
    assert verification.agreement == 1
    assert open_model(version / "model.onnx", "1").classify(drawn.test.images[:9]).shape == (9, 24)

    cascade = version
    with pytest.raises(VersionError, match="is a cascade itself"):
        combine(cascade, second, drawn, "both", 0.2)
    kept = second / "model.onnx"
    kept.rename(second / "away.onnx")
    shutil.copy(first / "model.onnx", kept)
    with pytest.raises(VersionError, match="second/1, which is missing or has changed"):
        verify_version(version, drawn.test)
    (second / "away.onnx").rename(kept)
    threshold = record["cascade"]["threshold"]
    record["cascade"]["threshold"] = 0.01
    (version / "run.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match="differ"):
        verify_version(version, drawn.test)
    record["cascade"]["threshold"] = threshold
    (version / "run.json").write_text(json.dumps(record))


def test_versions_that_do_not_belong_together_are_not_joined(
    repository: Path, drawn: Dataset, tmp_path: Path, mnist_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = repository / "first" / "1", repository / "second" / "1"
    elsewhere = shutil.copytree(second, tmp_path / "second" / "1")
    with pytest.raises(VersionError, match="lie in different model repositories"):
        combine(first, elsewhere, drawn, "both", 0.2)
    other = shutil.copytree(second, repository / "second" / "2")
    record = json.loads((other / "run.json").read_text())

    def refusal(**changes: object) -> str:
        kept = {name: value for name, value in (record | changes).items() if value is not None}
        (other / "run.json").write_text(json.dumps(kept))
        with pytest.raises((VersionError, DatasetError)) as caught:
            combine(first, other, drawn, "both", 0.2)
        return str(caught.value)

    assert "the versions differ in precision: fp32 and int8" in refusal(precision="int8")
    assert "has no output `whole`" in refusal(whole=None)
    assert "no seed in run.json" in refusal(seed=None)
    assert main(["cascade", str(first), str(second), "--data", str(mnist_path)]) == 1
    assert "not on MNIST as it is now; use the --data" in capsys.readouterr().err
    assert not (repository / "both" / "2").exists()
