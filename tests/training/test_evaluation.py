import json
from dataclasses import replace
from math import log, nan
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.samples.draw import draw_many
from training import pipeline
from training.calibrate import Threshold, certify, fit_temperature, softmax
from training.dataset import Dataset, Examples
from training.evaluate import accept, evaluate, judge, judge_fields, reliability, risk_coverage, wilson_interval
from training.recipes import RECIPES
from training.verify import Exported


def answers(*read: tuple[int, float]) -> NDArray[np.float64]:
    """Probabilities that read these digits with these confidences; the other digits share the rest."""
    probabilities = np.array([[(1 - confidence) / 9] * 10 for _, confidence in read])
    for row, (digit, confidence) in zip(probabilities, read, strict=True):
        row[digit] = confidence
    return probabilities


def test_the_temperature_undoes_an_overconfidence_of_three() -> None:
    random = np.random.default_rng(1)
    honest = random.normal(0, 1.5, (20_000, 10))
    labels = np.array([random.choice(10, p=row) for row in softmax(honest, 1)])
    assert fit_temperature(3 * honest, labels) == pytest.approx(3, rel=0.03)


def test_wilson_interval_is_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_evaluation_counts_what_is_right_and_how_sure_it_was() -> None:
    found = evaluate(answers((1, 0.82), (1, 0.82), (2, 0.82), (3, 0.82)), np.array([1, 7, 2, 3]))
    assert found.accuracy == 0.75
    assert (found.confusion[1][1], found.confusion[7][1], found.confusion[7][7]) == (1, 1, 0)
    assert found.calibration_error == pytest.approx(0.82 - 0.75)
    assert found.negative_log_likelihood == pytest.approx(-(3 * log(0.82) + log(0.02)) / 4)


def test_recall_is_of_the_images_of_a_digit_and_precision_of_those_read_as_it() -> None:
    read = answers((1, 0.9), (1, 0.9), (7, 0.9), (7, 0.9), (7, 0.9), (4, 0.9))
    found = evaluate(read, np.array([1, 7, 7, 7, 9, 4]))
    assert found.recall == [None, 1, None, None, 1, None, None, 2 / 3, None, 0]
    assert found.precision == [None, 1 / 2, None, None, 1, None, None, 2 / 3, None, None]


def test_the_risk_coverage_curve_takes_images_in_from_the_surest_on() -> None:
    read, labels = answers((5, 0.7), (1, 0.9), (3, 0.6), (2, 0.8)), np.array([0, 1, 3, 2])  # the third surest is wrong
    coverages, risks = risk_coverage(read, labels)
    assert coverages.tolist() == [0.25, 0.5, 0.75, 1]
    assert risks.tolist() == [0, 0, 1 / 3, 1 / 4]
    assert evaluate(read, labels).risk_coverage_area == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)


def test_images_of_equal_confidence_are_accepted_together_whatever_their_order() -> None:
    # the surest is right; of three alike one is wrong; the last is right
    read, labels = answers((1, 0.9), (2, 0.8), (3, 0.8), (4, 0.8), (5, 0.7)), np.array([1, 0, 3, 4, 5])
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 3, 1]):
        coverages, risks = risk_coverage(read[order], labels[order])
        assert coverages.tolist() == [0.2, 0.8, 1]
        assert risks.tolist() == [0, 1 / 4, 1 / 5]
        assert evaluate(read[order], labels[order]).risk_coverage_area == pytest.approx((0 + 3 / 4 + 1 / 5) / 5)


def test_confidences_that_the_onnx_file_could_not_tell_apart_are_equal() -> None:
    coverages, _ = risk_coverage(answers((1, 1 - 1e-9), (2, 1 - 1e-10)), np.array([1, 2]))
    assert coverages.tolist() == [1]


def test_rejecting_the_least_sure_leaves_fewer_errors() -> None:
    confidence = np.linspace(0.5, 0.999, 1000)  # the least sure 20 are wrong, and so is the surest
    read = answers(*((0, value) for value in confidence))
    labels = np.zeros(1000, int)
    labels[[*range(20), 999]] = 1
    found = evaluate(read, labels)
    assert found.error_at_reject == pytest.approx(
        {"0.005": 16 / 995, "0.01": 11 / 990, "0.02": 1 / 980, "0.05": 1 / 950, "0.1": 1 / 900}
    )
    # 1 %: 9 of 988 is less, 10 of 989 is more; 0.5 %: 4 of 983, 5 of 984; 0.2 %: 1 of 980, 2 of 981; 0.1 %: 1 is too many
    assert found.reject_at_error == pytest.approx({"0.01": 0.012, "0.005": 0.017, "0.002": 0.02, "0.001": 1})


def test_where_many_are_equally_sure_no_more_are_rejected_than_asked_for() -> None:
    read = answers(*[(0, 0.9)] * 92, *[(0, 0.6)] * 8)
    labels = np.zeros(100, int)
    labels[-4:] = 1
    found = evaluate(read, labels)
    assert found.error_at_reject["0.05"] == 0.04, "8 are equally unsure: they stay"
    assert found.error_at_reject["0.1"] == 0
    assert found.reject_at_error["0.01"] == pytest.approx(0.08)


def test_reliability_bands_compare_confidence_with_what_it_was_worth() -> None:
    count, confidence, accuracy = reliability(answers((1, 0.62), (2, 0.68), (3, 1.0)), np.array([1, 0, 3]), bands=10)
    assert count.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 1]
    np.testing.assert_allclose(confidence, [nan] * 6 + [0.65, nan, nan, 1], rtol=1e-6)
    np.testing.assert_array_equal(accuracy, [nan] * 6 + [0.5, nan, nan, 1])


def test_a_threshold_accepts_what_reaches_it() -> None:
    read, labels = answers((1, 0.9), (2, 0.75), (3, 0.75), (4, 0.6)), np.array([1, 2, 0, 4])
    found = accept(*judge(read, labels), 0.75)
    assert (found.coverage, found.errors, found.error) == (0.75, 1, 1 / 3)
    nothing = accept(*judge(read, labels), 0.95)
    assert (nothing.coverage, nothing.errors, nothing.error) == (0, 0, None)


def test_a_field_is_right_when_all_its_digits_are_and_as_sure_as_all_of_them_together() -> None:
    read = answers((1, 0.9), (2, 0.8), (3, 0.75), (4, 0.6), (5, 1.0))
    confidence, right = judge_fields(read, np.array([1, 2, 0, 4, 5]), 2)
    assert confidence == pytest.approx([0.9 * 0.8, 0.75 * 0.6])
    assert right.tolist() == [True, False]


@pytest.mark.parametrize(("target", "most"), [(0.01, 63), (0.005, 25), (0.002, 5), (0.001, 0)])
def test_of_ten_thousand_images_alike_so_many_may_be_wrong_and_no_more(target: float, most: int) -> None:
    # one test at 0.001 / 14, by tables of the exact binomial bound
    confidence, right = np.full(10_000, 0.9), np.ones(10_000, bool)
    right[:most] = False
    assert certify(confidence, right, target, 0.001) == Threshold(0.9, 1)
    right[most] = False
    assert certify(confidence, right, target, 0.001) is None


def test_of_the_thresholds_the_lowest_that_passes_is_found() -> None:
    confidence, right = np.linspace(0.1, 1, 10_000), np.ones(10_000, bool)
    right[:500] = False  # at 1 %, 60 wrong of 9,560 pass (bound 0.00995), and 61 of 9,561 do not (0.01008)
    assert certify(confidence, right, 0.01, 0.001) == Threshold(confidence[440], 0.956)


def test_few_images_that_say_little_do_not_hide_many_that_say_enough() -> None:
    confidence, right = np.linspace(0.1, 1, 10_000), np.ones(10_000, bool)
    right[:300] = False
    # at 0.1 % it takes 9,543 images without an error; 5,000, where a search of them all would begin, are too few
    assert certify(confidence, right, 0.001, 0.001) == Threshold(confidence[300], 0.97)
    right[:458] = False
    assert certify(confidence, right, 0.001, 0.001) is None


def test_a_certified_threshold_keeps_its_promise_as_often_as_it_says_and_is_not_timid() -> None:
    # Confidence is uniform and the chance of an error is 0.4 (1 - confidence): of what reaches t, 0.2 (1 - t) is wrong, so
    # that 5 % are wrong at a threshold of 0.75, which accepts 25 %.
    random, draws, delta = np.random.default_rng(1), 300, 0.1
    broken, coverages = 0, []
    for _ in range(draws):
        confidence = random.random(10_000)
        right = random.random(10_000) > 0.4 * (1 - confidence)
        found = certify(confidence, right, 0.05, delta)
        assert found is not None
        broken += found.threshold < 0.75
        coverages.append(found.coverage)
    assert broken <= delta * draws
    assert np.mean(coverages) > 0.17


def test_a_version_says_from_which_confidence_it_can_be_trusted_and_that_was_checked(tmp_path: Path) -> None:
    test = Examples(*draw_many(500, seed=1))
    recipe = replace(RECIPES["convnet"], batch_size=32, validation_images=1_000)
    dataset = Dataset(Examples(*draw_many(1_800, seed=2)), test, sha256="none: drawn")
    version = pipeline.run(recipe, dataset, seed=0, epochs=8, model_directory=tmp_path)
    record = json.loads((version / "run.json").read_text())
    exported = Exported(version / "model.onnx")

    thresholds = record["thresholds"]
    assert (list(thresholds), record["delta"]) == (["0.01", "0.005", "0.002", "0.001"], 0.001)
    assert thresholds["0.005"] is None, "a thousand images can't show that"
    threshold = thresholds["0.01"]["threshold"]
    stated = json.loads(exported.metadata["thresholds"])
    assert stated == {"0.01": {"threshold": threshold, "coverage": thresholds["0.01"]["coverage"]}}
    found = accept(*judge(exported.answers(test.images, 100)[1], test.labels), threshold)
    assert found.coverage == pytest.approx(thresholds["0.01"]["test_coverage"], abs=0.002)
    assert thresholds["0.01"]["coverage"] > 0.9
    assert found.errors == thresholds["0.01"]["test_errors"]
    assert record["uncalibrated"]["negative_log_likelihood"] != record["test"]["negative_log_likelihood"]

    fields = record["fields"]
    assert list(fields) == [str(length) for length in range(2, 11)]
    assert (fields["5"]["test_fields"], list(fields["5"]["thresholds"])) == (100, ["0.05", "0.02", "0.01", "0.005"])
    stated = json.loads(exported.metadata["field_thresholds"])
    assert list(stated) == list(fields)
    certified = fields["2"]["thresholds"]["0.05"]
    assert stated["2"]["0.05"] == {"threshold": certified["threshold"], "coverage": certified["coverage"]}
    confidence, right = judge_fields(exported.answers(test.images, 100)[1], test.labels, 2)
    assert right.mean() == fields["2"]["test_accuracy"]
    assert confidence.mean() == pytest.approx(fields["2"]["test_confidence"], abs=1e-5)
    assert accept(confidence, right, certified["threshold"]).errors == certified["test_errors"]
    assert "| 2 | 250 | " in (version / "MODEL_CARD.md").read_text()
