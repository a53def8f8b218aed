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

from serving.inference.classifier import PROBABILITIES, SHOWS, WHOLE
from serving.inference.model import open_model
from tests.support.networks import build
from tests.support.training_runs import tiny
from training.__main__ import main
from training.cascade.graph import join
from training.cascade.stages import Stages
from training.combine import combine
from training.dataset import Dataset, DatasetError
from training.exported import Exported, VerificationError
from training.verify import verify_version
from training.version_directory import VersionError

Images = NDArray[np.uint8]


@pytest.fixture(scope="module", params=["flagship_whole", "flagship_small"])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, Exported]:
    """Two untrained networks, exported at different temperatures. `flagship_small` has no output `whole`."""
    from training.export import export

    files = [tmp_path_factory.mktemp(name) / "model.onnx" for name in ("folded", request.param)]
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
    _, probabilities, whole = joined(stages, threshold, tmp_path / "model.onnx").outputs(images)
    first_whole = stages[0].outputs(images)[2]
    assert whole is not None
    assert first_whole is not None
    firsts, seconds = (stage.answers(images)[1] for stage in stages)
    confidence = firsts.max(axis=1)
    sure = confidence >= threshold * 1.0001
    assert 0.3 < sure.mean() < 0.7
    np.testing.assert_allclose(probabilities[sure], firsts[sure], atol=1e-5)
    np.testing.assert_allclose(whole[sure], first_whole[sure], atol=1e-5)
    half = confidence < 0.94 * threshold
    assert half.sum() > 20
    means = np.sqrt(firsts[half] * seconds[half])
    np.testing.assert_allclose(probabilities[half], means / means.sum(axis=1, keepdims=True), atol=1e-5)
    second_whole = stages[1].outputs(images)[2]
    if second_whole is None:
        second_whole = first_whole  # the first stage alone judges what is no digit
    np.testing.assert_allclose(whole[half], np.sqrt(first_whole[half] * second_whole[half]), atol=1e-5)


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
    layers = sum(node.op_type == "Conv" for node in onnx.load(stages[1].path).graph.node)
    assert (outer["QLinearConv"], outer["Conv"]) == (3, 0)
    assert (inner["QLinearConv"], inner["Conv"]) == (layers, 0)


@pytest.fixture(scope="module")
def repository(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions that were trained for a moment, in one repository: `first/1`, `second/1`, and `plain/1` without `whole`."""
    from training import pipeline
    from training.recipes import RECIPES
    from training.synthesis.mixture import Mixture

    repository = tmp_path_factory.mktemp("models")
    brief = Mixture(images=1000, passes=1, bank=100, teacher=0)
    folded = replace(RECIPES["folded"], mixture=brief, augmentation=None, validation_images=200, batch_size=20)
    runs = {"first": (folded, 1), "second": (folded, 2), "plain": (tiny(validation_images=200), 1)}
    for name, (recipe, epochs) in runs.items():
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
    assert open_model((version / "model.onnx").read_bytes(), "1").classify(drawn.test.images[:9]).shape == (9, 24)

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


def test_a_second_stage_without_whole_leaves_it_to_the_first(repository: Path, drawn: Dataset) -> None:
    first, second = repository / "first" / "1", repository / "plain" / "1"
    version = combine(first, second, drawn, "half-plain", 0.5, replace=True)
    record = json.loads((version / "run.json").read_text())
    assert record["whole"] == json.loads((first / "run.json").read_text())["whole"]
    assert "The first stage alone judges if an image shows one whole digit." in (version / "MODEL_CARD.md").read_text()
    _, verification = verify_version(version, drawn.test)
    assert verification.agreement == 1
    noise = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)  # the first stage is sure of all drawn digits
    images = np.concatenate([drawn.test.images, noise])
    served, alone = (open_model((path / "model.onnx").read_bytes(), "1").classify(images) for path in (version, first))
    np.testing.assert_allclose(served[:, WHOLE], alone[:, WHOLE], atol=1e-6)
    np.testing.assert_array_equal(served[:, SHOWS], alone[:, SHOWS])
    assert np.abs(served[:, PROBABILITIES] - alone[:, PROBABILITIES]).max() > 0.1, "the second stage has another opinion"
    with pytest.raises(VersionError, match=r"plain/1 has no output `whole`; take a first stage of a recipe"):
        combine(second, first, drawn, "half-plain", 0.5)


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
    assert "no seed in run.json" in refusal(seed=None)
    assert main(["cascade", str(first), str(second), "--data", str(mnist_path)]) == 1
    assert "not on MNIST as it is now; use the --data" in capsys.readouterr().err
    assert not (repository / "both" / "2").exists()
