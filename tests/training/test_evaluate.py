from math import log, nan

import numpy as np
import pytest
from numpy.typing import NDArray

from training.calibrate import fit_temperature, softmax
from training.evaluate import accept, evaluate, reliability, risk_coverage, score, score_fields, wilson_interval


def answers(*predicted: tuple[int, float]) -> NDArray[np.float64]:
    """Probabilities that predict these digits with these confidences; the other digits share the rest."""
    probabilities = np.array([[(1 - confidence) / 9] * 10 for _, confidence in predicted])
    for row, (digit, confidence) in zip(probabilities, predicted, strict=True):
        row[digit] = confidence
    return probabilities


def test_the_temperature_compensates_threefold_overconfidence() -> None:
    random = np.random.default_rng(1)
    honest = random.normal(0, 1.5, (20_000, 10))
    labels = np.array([random.choice(10, p=row) for row in softmax(honest, 1)])
    assert fit_temperature(3 * honest, labels) == pytest.approx(3, rel=0.03)


def test_the_wilson_interval_equals_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_an_evaluation_counts_correct_answers_and_their_confidence() -> None:
    found = evaluate(answers((1, 0.82), (1, 0.82), (2, 0.82), (3, 0.82)), np.array([1, 7, 2, 3]))
    assert found.accuracy == 0.75
    assert (found.confusion[1][1], found.confusion[7][1], found.confusion[7][7]) == (1, 1, 0)
    assert found.calibration_error == pytest.approx(0.82 - 0.75)
    assert found.negative_log_likelihood == pytest.approx(-(3 * log(0.82) + log(0.02)) / 4)


def test_recall_counts_true_digits_and_precision_predicted_ones() -> None:
    read = answers((1, 0.9), (1, 0.9), (7, 0.9), (7, 0.9), (7, 0.9), (4, 0.9))
    found = evaluate(read, np.array([1, 7, 7, 7, 9, 4]))
    assert found.recall == [None, 1, None, None, 1, None, None, 2 / 3, None, 0]
    assert found.precision == [None, 1 / 2, None, None, 1, None, None, 2 / 3, None, None]


def test_risk_coverage_accepts_the_most_confident_images_first() -> None:
    # The third most confident image is wrong.
    read, labels = answers((5, 0.7), (1, 0.9), (3, 0.6), (2, 0.8)), np.array([0, 1, 3, 2])
    coverages, risks = risk_coverage(read, labels)
    assert coverages.tolist() == [0.25, 0.5, 0.75, 1]
    assert risks.tolist() == [0, 0, 1 / 3, 1 / 4]
    assert evaluate(read, labels).risk_coverage_area == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)


def test_images_of_equal_confidence_are_accepted_together_in_any_order() -> None:
    # The most confident is correct, one of three equally confident ones is wrong, and the last is correct.
    read, labels = answers((1, 0.9), (2, 0.8), (3, 0.8), (4, 0.8), (5, 0.7)), np.array([1, 0, 3, 4, 5])
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 3, 1]):
        coverages, risks = risk_coverage(read[order], labels[order])
        assert coverages.tolist() == [0.2, 0.8, 1]
        assert risks.tolist() == [0, 1 / 4, 1 / 5]
        assert evaluate(read[order], labels[order]).risk_coverage_area == pytest.approx((0 + 3 / 4 + 1 / 5) / 5)


def test_confidences_that_are_equal_in_float32_are_equal() -> None:
    coverages, _ = risk_coverage(answers((1, 1 - 1e-9), (2, 1 - 1e-10)), np.array([1, 2]))
    assert coverages.tolist() == [1]


def test_rejecting_the_least_confident_images_leaves_fewer_errors() -> None:
    confidence = np.linspace(0.5, 0.999, 1000)  # the 20 least confident images are wrong, and so is the most confident
    read = answers(*((0, value) for value in confidence))
    labels = np.zeros(1000, int)
    labels[[*range(20), 999]] = 1
    found = evaluate(read, labels)
    assert found.error_at_reject == pytest.approx(
        {"0.005": 16 / 995, "0.01": 11 / 990, "0.02": 1 / 980, "0.05": 1 / 950, "0.1": 1 / 900}
    )
    # 1 %: 9 of 988 is below, 10 of 989 above; 0.5 %: 4 of 983, 5 of 984; 0.2 %: 1 of 980, 2 of 981; 0.1 %: 1 is too many
    assert found.reject_at_error == pytest.approx({"0.01": 0.012, "0.005": 0.017, "0.002": 0.02, "0.001": 1})


def test_equally_confident_images_are_kept_rather_than_over_rejected() -> None:
    read = answers(*[(0, 0.9)] * 92, *[(0, 0.6)] * 8)
    labels = np.zeros(100, int)
    labels[-4:] = 1
    found = evaluate(read, labels)
    assert found.error_at_reject["0.05"] == 0.04, "8 images are equally unsure, so they stay"
    assert found.error_at_reject["0.1"] == 0
    assert found.reject_at_error["0.01"] == pytest.approx(0.08)


def test_reliability_bands_compare_confidence_with_accuracy() -> None:
    count, confidence, accuracy = reliability(answers((1, 0.62), (2, 0.68), (3, 1.0)), np.array([1, 0, 3]), bands=10)
    assert count.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 1]
    np.testing.assert_allclose(confidence, [nan] * 6 + [0.65, nan, nan, 1], rtol=1e-6)
    np.testing.assert_array_equal(accuracy, [nan] * 6 + [0.5, nan, nan, 1])


def test_a_threshold_accepts_confidences_that_reach_it() -> None:
    read, labels = answers((1, 0.9), (2, 0.75), (3, 0.75), (4, 0.6)), np.array([1, 2, 0, 4])
    found = accept(*score(read, labels), 0.75)
    assert (found.coverage, found.errors, found.error) == (0.75, 1, 1 / 3)
    nothing = accept(*score(read, labels), 0.95)
    assert (nothing.coverage, nothing.errors, nothing.error) == (0, 0, None)


def test_a_field_is_correct_if_all_digits_are_and_confidences_multiply() -> None:
    read = answers((1, 0.9), (2, 0.8), (3, 0.75), (4, 0.6), (5, 1.0))
    confidence, correct = score_fields(*score(read, np.array([1, 2, 0, 4, 5])), 2)
    assert confidence == pytest.approx([0.9 * 0.8, 0.75 * 0.6])
    assert correct.tolist() == [True, False]
