import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.drawings import draw_many
from training.certify import Threshold, certify
from training.dataset import Dataset, Examples
from training.evaluate import accept, score, score_fields
from training.verify import Exported


@pytest.mark.parametrize(("target", "most"), [(0.01, 63), (0.005, 25), (0.002, 5), (0.001, 0)])
def test_the_number_of_allowed_errors_is_that_of_the_exact_bound(target: float, most: int) -> None:
    # One test of 10,000 equally confident images at 0.001 / 14, by tables of the exact binomial bound.
    confidence, correct = np.full(10_000, 0.9), np.ones(10_000, bool)
    correct[:most] = False
    assert certify(confidence, correct, target, 0.001) == Threshold(0.9, 1)
    correct[most] = False
    assert certify(confidence, correct, target, 0.001) is None


def test_the_lowest_threshold_that_passes_is_found() -> None:
    confidence, correct = np.linspace(0.1, 1, 10_000), np.ones(10_000, bool)
    correct[:500] = False  # at 1 %, 60 errors of 9,560 pass (bound 0.00995), and 61 of 9,561 do not (0.01008)
    assert certify(confidence, correct, 0.01, 0.001) == Threshold(confidence[440], 0.956)


def test_thresholds_that_accept_too_few_images_do_not_end_the_search() -> None:
    confidence, correct = np.linspace(0.1, 1, 10_000), np.ones(10_000, bool)
    correct[:300] = False
    # At 0.1 % a threshold needs 9,543 images without an error; a binary search over all would fail at its first 5,000.
    assert certify(confidence, correct, 0.001, 0.001) == Threshold(confidence[300], 0.97)
    correct[:458] = False
    assert certify(confidence, correct, 0.001, 0.001) is None


def test_a_certified_threshold_keeps_its_guarantee_and_is_not_timid() -> None:
    # Confidence is uniform and the probability of an error is 0.4 (1 - confidence). Above a threshold t, 0.2 (1 - t) of the
    # answers are wrong: 5 % at a threshold of 0.75, which accepts 25 %.
    random, draws, delta = np.random.default_rng(1), 300, 0.1
    broken, coverages = 0, []
    for _ in range(draws):
        confidence = random.random(10_000)
        correct = random.random(10_000) > 0.4 * (1 - confidence)
        found = certify(confidence, correct, 0.05, delta)
        assert found is not None
        broken += found.threshold < 0.75
        coverages.append(found.coverage)
    assert broken <= delta * draws
    assert np.mean(coverages) > 0.17


def test_a_version_publishes_its_thresholds_and_their_effect(tmp_path: Path) -> None:
    from training import pipeline
    from training.recipes import RECIPES

    test = Examples(*draw_many(500, seed=1))
    recipe = replace(RECIPES["convnet"], batch_size=32, validation_images=1_000)
    dataset = Dataset(Examples(*draw_many(1_800, seed=2)), test, sha256="none: drawn")
    version = pipeline.run(recipe, dataset, seed=0, epochs=8, model_directory=tmp_path)
    record = json.loads((version / "run.json").read_text())
    exported = Exported(version / "model.onnx")
    probabilities = exported.answers(test.images, 100)[1]

    thresholds = record["thresholds"]
    assert (list(thresholds), record["delta"]) == (["0.01", "0.005", "0.002", "0.001"], 0.001)
    assert thresholds["0.005"] is None, "a thousand images are too few to prove that"
    threshold = thresholds["0.01"]["threshold"]
    in_metadata = json.loads(exported.metadata["thresholds"])
    assert in_metadata == {"0.01": {"threshold": threshold, "coverage": thresholds["0.01"]["coverage"]}}
    found = accept(*score(probabilities, test.labels), threshold)
    assert found.coverage == pytest.approx(thresholds["0.01"]["test_coverage"], abs=0.002)
    assert thresholds["0.01"]["coverage"] > 0.9
    assert found.errors == thresholds["0.01"]["test_errors"]
    assert record["uncalibrated"]["negative_log_likelihood"] != record["test"]["negative_log_likelihood"]

    fields = record["fields"]
    assert list(fields) == [str(length) for length in range(2, 11)]
    assert (fields["5"]["test_fields"], list(fields["5"]["thresholds"])) == (100, ["0.05", "0.02", "0.01", "0.005"])
    in_metadata = json.loads(exported.metadata["field_thresholds"])
    assert list(in_metadata) == list(fields)
    certified = fields["2"]["thresholds"]["0.05"]
    assert in_metadata["2"]["0.05"] == {"threshold": certified["threshold"], "coverage": certified["coverage"]}
    confidence, correct = score_fields(probabilities, test.labels, 2)
    assert correct.mean() == fields["2"]["test_accuracy"]
    assert confidence.mean() == pytest.approx(fields["2"]["test_confidence"], abs=1e-5)
    assert accept(confidence, correct, certified["threshold"]).errors == certified["test_errors"]
    assert "| 2 | 250 | " in (version / "MODEL_CARD.md").read_text()
