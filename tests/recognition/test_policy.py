from pathlib import Path

import numpy as np
import pytest

from serving.answers.decision import Decision, Threshold
from serving.inference.classifier import Classifier
from serving.recognition.policy import choose, decide

CERTIFIED = (Threshold(0.01, 0.4), Threshold(0.005, 0.7), Threshold(0.002, 0.98))
LOW, ACCEPT, INVALID = Decision.REJECT_LOW_CONFIDENCE, Decision.ACCEPT, Decision.REJECT_INVALID_IMAGE


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
    decisions = decide(np.array([0.5, 1.0]), np.array([False, True]), None)
    assert decisions.tolist() == [INVALID, Decision.REJECT_NOT_CERTIFIED]


def test_inked_answers_at_or_above_the_threshold_are_accepted() -> None:
    decisions = decide(np.array([0.39, 0.4, 0.9, 0.9]), np.array([True, True, True, False]), Threshold(0.01, 0.4))
    assert decisions.dtype == np.uint8
    assert decisions.tolist() == [LOW, ACCEPT, ACCEPT, INVALID]


def test_confidences_are_compared_without_rounding_the_threshold() -> None:
    confidence = np.array([0.95], np.float32)  # 0.949999988..., which is below 0.95
    assert decide(confidence, np.array([True]), Threshold(0.01, 0.95)).tolist() == [LOW]
    assert decide(confidence, np.array([True]), Threshold(0.01, float(confidence[0]))).tolist() == [ACCEPT]


def test_each_certified_target_holds_on_the_mnist_test_images(model: Classifier, mnist_path: Path) -> None:
    with np.load(mnist_path) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    probabilities = np.concatenate([model.predict(part) for part in np.split(images, 100)])
    digits, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for threshold in model.metadata.thresholds:
        accepted = decide(confidences, np.ones(len(labels), bool), threshold) == ACCEPT
        assert accepted.mean() > 0.97
        assert (digits[accepted] != labels[accepted]).mean() <= threshold.target_error_rate
