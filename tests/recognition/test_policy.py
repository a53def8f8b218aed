from pathlib import Path

import numpy as np
import pytest

from serving.answers.decision import Decision, Threshold
from serving.inference.classifier import BLANK, CONFIDENCE, DIGIT, NOT_ONE_DIGIT, ONE_DIGIT, SHOWS, Classifier
from serving.recognition.policy import choose, decide

CERTIFIED = (Threshold(0.01, 0.4), Threshold(0.005, 0.7), Threshold(0.002, 0.98))
LOW, ACCEPT, INVALID = Decision.REJECT_LOW_CONFIDENCE, Decision.ACCEPT, Decision.REJECT_INVALID_IMAGE
NO_DIGIT = Decision.REJECT_NO_DIGIT
EACH = np.array([BLANK, NOT_ONE_DIGIT, ONE_DIGIT], np.uint8)


@pytest.mark.parametrize(
    ("target", "confidence"), [(0.5, 0.4), (0.01, 0.4), (0.0099, 0.7), (0.005, 0.7), (0.003, 0.98), (0.002, 0.98)]
)
def test_the_threshold_is_the_certified_one_for_the_target_or_less(target: float, confidence: float) -> None:
    threshold = choose(CERTIFIED, target)
    assert threshold
    assert threshold.confidence == confidence


def test_nothing_is_accepted_without_a_certified_threshold() -> None:
    assert choose(CERTIFIED, 0.001) is None
    assert choose((), 0.5) is None
    decisions = decide(np.array([0.5, 1.0, 1.0]), EACH, None)
    assert decisions.tolist() == [INVALID, NO_DIGIT, Decision.REJECT_NOT_CERTIFIED]


def test_digits_at_or_above_the_threshold_are_accepted() -> None:
    decisions = decide(np.array([0.39, 0.4, 0.9]), np.full(3, ONE_DIGIT, np.uint8), Threshold(0.01, 0.4))
    assert decisions.dtype == np.uint8
    assert decisions.tolist() == [LOW, ACCEPT, ACCEPT]


@pytest.mark.parametrize("confidence", [0.39, 0.9])
def test_what_is_no_digit_is_rejected_at_any_confidence(confidence: float) -> None:
    decisions = decide(np.full(3, confidence), EACH, Threshold(0.01, 0.4))
    assert decisions.tolist()[:2] == [INVALID, NO_DIGIT]


def test_confidences_are_compared_without_rounding_the_threshold() -> None:
    confidence = np.array([0.95], np.float32)  # 0.949999988..., which is below 0.95
    shows = np.array([ONE_DIGIT], np.uint8)
    assert decide(confidence, shows, Threshold(0.01, 0.95)).tolist() == [LOW]
    assert decide(confidence, shows, Threshold(0.01, float(confidence[0]))).tolist() == [ACCEPT]


def test_each_certified_target_holds_on_the_mnist_test_images(model: Classifier, mnist_path: Path) -> None:
    with np.load(mnist_path) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    rows = np.concatenate([model.classify(part) for part in np.split(images, 100)])
    digits, confidences, shows = rows[:, DIGIT], rows[:, CONFIDENCE], rows[:, SHOWS].astype(np.uint8)
    for threshold in model.metadata.thresholds:
        accepted = decide(confidences, shows, threshold) == ACCEPT
        assert accepted.mean() > 0.92
        assert (digits[accepted] != labels[accepted]).mean() <= threshold.target_error_rate
