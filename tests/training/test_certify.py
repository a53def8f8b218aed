import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from tests.support.drawings import draw_many
from training.certify import GRID, Threshold, bound_by_writer, certify, first_count, upper_bound
from training.dataset import Dataset, Examples
from training.evaluate import accept, score, score_fields
from training.exported import Exported


def test_the_grid_falls_from_certainty_and_is_exact_in_float32() -> None:
    assert (np.diff(GRID) < 0).all()
    assert (GRID[0], GRID[-1]) == (1, pytest.approx(1e-10))
    assert (GRID.astype(np.float32).astype(np.float64) == GRID).all()
    assert np.abs(GRID - 0.5).min() == 0


@pytest.mark.parametrize(("target", "most"), [(0.01, 70), (0.005, 29), (0.002, 7), (0.001, 1)])
def test_the_number_of_allowed_errors_is_that_of_one_exact_test(target: float, most: int) -> None:
    assert binom.cdf(most, 10_000, target) <= 0.001 < binom.cdf(most + 1, 10_000, target)
    confidence, correct = np.full(10_000, 0.9), np.ones(10_000, bool)
    correct[:most] = False
    strictest = GRID[GRID <= 0.9][0]
    assert certify(confidence, correct, target, 0.001) == Threshold(strictest, 1, most)
    correct[most] = False
    assert certify(confidence, correct, target, 0.001) is None


def test_testing_stops_at_the_first_threshold_that_fails() -> None:
    confidence, correct = np.linspace(0.1, 1, 10_000), np.ones(10_000, bool)
    correct[5_000:5_030] = False  # too many for 1 % of the best 5,000 images, but not for 1 % of all
    found = certify(confidence, correct, 0.01, 0.001)
    assert found is not None
    assert 0.47 < found.coverage < 0.5
    assert upper_bound(30, 5_000, 0.001) > 0.01 > upper_bound(30, 10_000, 0.001), "the last threshold would pass again"


def test_a_test_starts_where_it_survives_three_errors_if_it_can() -> None:
    assert first_count(10_000, 0.01, 0.001) == 1302
    assert binom.cdf(3, 1302, 0.01) <= 0.001 < binom.cdf(3, 1301, 0.01)
    assert first_count(10_000, 0.001, 0.001) == 9230, "two errors would need more than 95 % of the images"
    assert first_count(9_000, 0.001, 0.001) == 6905, "not even one error"
    assert first_count(6_904, 0.001, 0.001) is None
    assert first_count(2_000, 0.005, 0.001, length=5) == 1379, "one error would need more than 0.95^5 of the fields"
    assert first_count(0, 0.01, 0.001) is None


def test_one_wrong_label_does_not_end_all_testing() -> None:
    confidence, correct = np.linspace(0.1, 1, 10_000), np.ones(10_000, bool)
    correct[-1] = False  # the most confident answer
    assert certify(confidence, correct, 0.001, 0.001) is not None
    correct[-2] = False
    assert certify(confidence, correct, 0.001, 0.001) is None


def violations(error: float, slope: float, draws: int, rule: str) -> float:
    """Share of the draws in which a threshold with an error above 5 % is returned, at a risk of 0.1.

    An answer of confidence c is wrong with probability error + slope (1 - c); c is uniform. Above a threshold t, the error
    is error + slope (1 - t) / 2.
    """
    random, broken = np.random.default_rng(1), 0
    for _ in range(draws):
        confidence = random.random(1_000)
        correct = random.random(1_000) >= error + slope * (1 - confidence)
        if rule == "certify":
            found = certify(confidence, correct, 0.05, 0.1)
            threshold = None if found is None else found.threshold
        else:  # the loosest threshold of the grid that passes alone, as if each were the only one
            passing = [t for t in GRID if passes(confidence >= t, correct)]
            threshold = passing[-1] if passing else None
        broken += threshold is not None and error + slope * (1 - threshold) / 2 > 0.05
    return broken / draws


def passes(accepted: NDArray[np.bool_], correct: NDArray[np.bool_]) -> bool:
    return upper_bound(int((accepted & ~correct).sum()), int(accepted.sum()), 0.1) <= 0.05


@pytest.mark.parametrize(("error", "slope"), [(0.0501, 0.0), (0.0, 0.4), (0.03, 0.1), (0.0, 0.11)])
def test_the_promise_fails_in_at_most_its_risk_of_the_draws(error: float, slope: float) -> None:
    # 1,000 draws: 0.1 plus three standard errors. The first world has no threshold that keeps the promise.
    assert violations(error, slope, 1_000, "certify") <= 0.1 + 3 * (0.1 * 0.9 / 1_000) ** 0.5


def test_taking_the_loosest_threshold_that_passes_would_break_the_promise() -> None:
    assert violations(0.0501, 0.0, 200, "loosest") > 0.2


def test_certified_thresholds_are_not_timid() -> None:
    random, coverages = np.random.default_rng(1), []
    for _ in range(100):
        confidence = random.random(10_000)
        correct = random.random(10_000) >= 0.4 * (1 - confidence)  # 5 % at a threshold of 0.75, which accepts 25 %
        found = certify(confidence, correct, 0.05, 0.1)
        assert found is not None
        coverages.append(found.coverage)
    assert np.mean(coverages) > 0.19


def clustered(random: np.random.Generator, writers: int, each: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Answers whose error is 2 % on average, and by writer beta-distributed: between-writer variance of one in 50."""
    rates = random.beta(0.02 * 49, 0.98 * 49, writers)
    return (random.random((writers, each)) >= rates[:, None]).ravel(), np.repeat(np.arange(writers), each)


def test_the_bound_by_writer_holds_where_errors_cluster_by_writer() -> None:
    random, draws, risk = np.random.default_rng(1), 500, 0.05
    too_low, naive_too_low = 0, 0
    for _ in range(draws):
        correct, writers = clustered(random, 90, 110)
        everything = np.ones(len(correct), bool)
        bound = bound_by_writer(correct, everything, writers, risk)
        assert bound is not None
        too_low += bound < 0.02
        naive_too_low += upper_bound(int((~correct).sum()), len(correct), risk) < 0.02
    assert too_low / draws <= risk + 3 * (risk * (1 - risk) / draws) ** 0.5
    assert naive_too_low / draws > 2 * risk, "the bound for independent answers is too low here"


def test_the_bound_by_writer_needs_two_writers_and_exceeds_the_plain_one() -> None:
    correct, writers = np.ones(1_000, bool), np.repeat(np.arange(10), 100)
    correct[:5] = False  # all by one writer
    everything = np.ones(1_000, bool)
    bound = bound_by_writer(correct, everything, writers, 0.001)
    assert bound is not None
    assert bound > 2 * upper_bound(5, 1_000, 0.001)
    assert bound_by_writer(correct, everything, np.zeros(1_000), 0.001) is None
    assert bound_by_writer(correct, ~everything, writers, 0.001) is None
    without = bound_by_writer(everything, everything, writers, 0.001)
    assert without is not None
    assert without > upper_bound(0, 1_000, 0.001), "ten writers tell less than a thousand independent images"


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
    assert (list(thresholds), record["risk"]) == (["0.01", "0.005", "0.002", "0.001"], 0.001)
    assert thresholds["0.005"] is None, "a thousand images are too few to prove that"
    threshold = thresholds["0.01"]["threshold"]
    in_metadata = json.loads(exported.metadata["thresholds"])
    assert in_metadata == {"0.01": {"threshold": threshold, "coverage": thresholds["0.01"]["coverage"]}}
    assert thresholds["0.01"]["by_writer"] is None, "the writers are unknown"
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
    confidence, correct = score_fields(*score(probabilities, test.labels), 2)
    assert correct.mean() == fields["2"]["test_accuracy"]
    assert confidence.mean() == pytest.approx(fields["2"]["test_confidence"], abs=1e-5)
    assert accept(confidence, correct, certified["threshold"]).errors == certified["test_errors"]
    assert "| 2 | 250 | " in (version / "MODEL_CARD.md").read_text()
