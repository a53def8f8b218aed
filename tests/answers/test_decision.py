import numpy as np
import pytest

from serving.answers.decision import Decision, Threshold, choose, decide
from serving.inference.metadata import thresholds
from serving.inference.model import Model
from serving.pb.digits.v1 import digit_service_pb2 as pb

CERTIFIED = (Threshold(0.01, 0.4), Threshold(0.005, 0.7), Threshold(0.002, 0.98))


def test_the_decisions_have_the_names_and_numbers_of_the_api() -> None:
    assert {f"DECISION_{decision.name}": decision.value for decision in Decision} == dict(pb.Decision.items())


def test_thresholds_are_parsed_with_the_largest_error_rate_first() -> None:
    text = '{"0.002": {"threshold": 0.98, "coverage": 0.97}, "0.01": {"threshold": 0.4}, "0.005": {"threshold": 0.7}}'
    assert thresholds(text) == CERTIFIED
    assert thresholds("{}") == ()


INVALID_THRESHOLDS = [
    *("", "[]", "0.5", '{"0.01": 0.4}', '{"0.01": {}}', '{"x": {"threshold": 0.4}}', '{"0.01": {"threshold": "x"}}'),
    *('{"0.01": {"threshold": 1.4}}', '{"0": {"threshold": 0.4}}', '{"1": {"threshold": 0.4}}', '{"nan": {"threshold": 1}}'),
]


@pytest.mark.parametrize("text", INVALID_THRESHOLDS)
def test_invalid_thresholds_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # some messages are json's
        thresholds(text)


@pytest.mark.parametrize(
    ("target", "chosen"), [(0.5, 0.4), (0.01, 0.4), (0.0099, 0.7), (0.005, 0.7), (0.003, 0.98), (0.002, 0.98)]
)
def test_the_chosen_threshold_has_at_most_the_requested_error_rate(target: float, chosen: float) -> None:
    threshold = choose(CERTIFIED, target)
    assert threshold
    assert threshold.confidence == chosen


def test_without_a_certified_threshold_nothing_is_accepted() -> None:
    assert choose(CERTIFIED, 0.001) is None
    assert choose((), 0.5) is None
    decisions = decide([0.5, 1.0], [False, True], None)
    assert list(decisions) == [Decision.REJECT_INVALID_IMAGE, Decision.REJECT_NOT_CERTIFIED]


def test_a_valid_image_at_or_above_the_threshold_is_accepted() -> None:
    decisions = decide([0.39, 0.4, 0.9, 0.9], [True, True, True, False], Threshold(0.01, 0.4))
    low, accept, invalid = Decision.REJECT_LOW_CONFIDENCE, Decision.ACCEPT, Decision.REJECT_INVALID_IMAGE
    assert list(decisions) == [low, accept, accept, invalid]


def test_the_bundled_model_has_certified_thresholds(model: Model) -> None:
    assert [threshold.target_error_rate for threshold in model.thresholds] == [0.01, 0.005, 0.002]
    confidences = [threshold.confidence for threshold in model.thresholds]
    assert confidences == sorted(confidences)
    assert list(model.field_thresholds) == list(range(2, 11))
    assert [threshold.target_error_rate for threshold in model.field_thresholds[5]] == [0.05, 0.02, 0.01]


def test_each_certified_error_rate_holds_on_the_test_images(model: Model, mnist_path: object) -> None:
    with np.load(str(mnist_path)) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    probabilities = np.concatenate([model.predict(part) for part in np.split(images, 100)])
    digits, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for threshold in model.thresholds:
        decisions = decide(confidences.tolist(), [True] * len(labels), threshold)
        accepted = np.frombuffer(decisions, np.uint8) == Decision.ACCEPT
        assert accepted.mean() > 0.97
        assert (digits[accepted] != labels[accepted]).mean() <= threshold.target_error_rate
