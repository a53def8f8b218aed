import pytest

from serving.answers.decision import Threshold
from serving.inference.classifier import Classifier
from serving.inference.metadata import parse_thresholds

INVALID = [
    *("", "[]", "0.5", '{"0.01": 0.4}', '{"0.01": {}}', '{"x": {"threshold": 0.4}}', '{"0.01": {"threshold": "x"}}'),
    *('{"0.01": {"threshold": 1.4}}', '{"0": {"threshold": 0.4}}', '{"1": {"threshold": 0.4}}', '{"nan": {"threshold": 1}}'),
]


def test_thresholds_are_parsed_with_the_largest_error_rate_first() -> None:
    text = '{"0.002": {"threshold": 0.98, "coverage": 0.97}, "0.01": {"threshold": 0.4}, "0.005": {"threshold": 0.7}}'
    assert parse_thresholds(text) == (Threshold(0.01, 0.4), Threshold(0.005, 0.7), Threshold(0.002, 0.98))
    assert parse_thresholds("{}") == ()


@pytest.mark.parametrize("text", INVALID)
def test_text_of_another_form_is_refused_as_thresholds(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # some messages are those of the JSON parser
        parse_thresholds(text)


def test_the_bundled_model_states_its_certified_thresholds(model: Classifier) -> None:
    metadata = model.metadata
    assert [threshold.target_error_rate for threshold in metadata.thresholds] == [0.01, 0.005, 0.002]
    confidences = [threshold.confidence for threshold in metadata.thresholds]
    assert confidences == sorted(confidences)
    assert list(metadata.field_thresholds) == list(range(2, 11))
    assert [threshold.target_error_rate for threshold in metadata.field_thresholds[5]] == [0.05, 0.02, 0.01]


def test_a_target_without_a_certified_threshold_is_explained(model: Classifier) -> None:
    assert model.metadata.missing_certificate(0.002) == ""
    assert "no certified threshold for an error rate of 0.0005" in model.metadata.missing_certificate(0.0005)
