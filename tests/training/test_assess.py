"""Assessment of a network whose answers are made up: its temperature, certificates, refusals, and warnings."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.settings import Settings
from training.assess import assess
from training.certificates import accepts_by_default, certify_answers, certify_mail
from training.dataset import Examples
from training.evaluate import DEFAULT_ERROR, accept, score, score_fields
from training.export import metadata
from training.mail import Answers, Mail
from training.whole import Heads, split_heads


def examples(count: int, wrong: int, writers: int | None = None) -> Examples:
    """Blank but for one pixel, which holds the image's answer: the label, except for the last `wrong` images."""
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0] = np.where(np.arange(count) < count - wrong, labels, (labels + 1) % 10) + 1
    images[:, 0, 1] = np.arange(count) % 100  # how much the network doubts
    of_image = None if writers is None else np.arange(count) // (count // writers)
    return Examples(images, labels, of_image)


def two_heads(images: NDArray[np.uint8]) -> Heads:
    """Outputs of a confident network, whose second head doubts images with a large second pixel."""
    outputs = np.full((len(images), 11), -4, np.float32)
    outputs[np.arange(len(images)), images[:, 0, 0] - 1] = 4
    outputs[:, 10] = 5 - images[:, 0, 1] / 10
    return split_heads(outputs)


def one_head(images: NDArray[np.uint8]) -> Heads:
    return Heads(two_heads(images).logits, None)


def test_certificates_of_images_name_risk_images_and_writers() -> None:
    held_out = examples(5_000, 5, writers=50)
    logits, _ = one_head(held_out.images)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = Answers(probabilities, *score(probabilities, held_out.labels))
    found = certify_mail(Mail.of(held_out), answers, 0.01)
    assert (found["risk"], found["certified"]) == (0.01, {"images": 5_000, "writers": 50})
    one = found["thresholds"]["0.005"]
    assert (one["coverage"], one["errors"]) == (1, 5)
    assert one["by_writer"] > 0.001
    assert list(found["fields"]) == [str(length) for length in range(2, 11)]
    five = found["fields"]["5"]["thresholds"]["0.01"]
    assert (five["coverage"], five["errors"]) == (1, 1), "the five wrong digits are one field"
    unknown = certify_mail(Mail.of(Examples(held_out.images, held_out.labels)), answers, 0.01)
    assert unknown["certified"]["writers"] is None
    assert json.loads(json.dumps(found)) == found


def test_fields_with_confidences_from_elsewhere_can_be_certified() -> None:
    confidence, correct = np.linspace(0.2, 1, 2_000), np.arange(2_000) >= 20
    found = certify_answers(confidence, correct, (0.01, 0.0001), 0.001, 5)
    assert found["0.0001"] is None
    assert found["0.01"] is not None
    assert found["0.01"]["coverage"] > 0.98


def test_answers_that_the_second_head_refuses_are_not_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    held_out, test = examples(10_000, 10), examples(2_000, 0)
    record = assess(two_heads, held_out, test)
    whole = record["whole"]
    assert whole["held_out_lost"] == whole["test_lost"] == 0.01, "100 digits share the lowest value"
    assert "refuses 1.00% of the held-out digits (aim 0.10%) and 1.00% of the test images" in capsys.readouterr().out
    found = record["thresholds"]["0.005"]
    assert found["coverage"] == found["test_coverage"] == pytest.approx(0.99)
    assert record["fields"]["5"]["thresholds"]["0.02"]["test_coverage"] == pytest.approx(0.95), "1 field in 20 has a piece"
    assert record["test"]["accuracy"] == 1, "accuracy counts all answers"
    plain = assess(one_head, held_out, test)
    assert "whole" not in plain
    assert plain["thresholds"]["0.005"]["coverage"] == 1
    assert plain["drift_reference"] == record["drift_reference"]


def test_the_model_file_names_whole_threshold_risk_and_source_of_the_certificate() -> None:
    record = {
        **assess(two_heads, examples(10_000, 10, writers=100), examples(200, 0), risk=0.01),
        "libraries": {},
        "recipe": "made up",
        "parameters": 1,
        "seed": 0,
        "dataset_sha256": "none",
        "precision": "fp32",
        "commit": "none",
        "created": "now",
        "validation_images": 10_000,
        "certified_on": "made-up images",
    }
    written = metadata(record)
    assert float(written["whole_threshold"]) == record["whole"]["threshold"]
    assert (written["risk"], written["certified_on"]) == ("0.01", "made-up images")
    found = record["thresholds"]["0.01"]
    in_file = json.loads(written["thresholds"])["0.01"]
    assert in_file == {name: found[name] for name in ("threshold", "coverage", "by_writer")}
    assert all(isinstance(value, str) for value in written.values())
    del record["whole"]
    assert "whole_threshold" not in metadata(record)


@pytest.mark.parametrize(
    ("held_out", "reason"),
    [
        (examples(0, 0), "no images were held out to certify thresholds on; train with --hold-out 10000"),
        (examples(500, 0), "can be certified on 500 held-out images; hold out more with --hold-out, train a more accurate"),
        (examples(1_000, 0), "train a more accurate recipe, or ask for a target error rate of 1.0%"),
    ],
    ids=["none held out", "too few", "enough for a looser rate"],
)
def test_a_version_that_accepts_nothing_is_announced(
    held_out: Examples, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = assess(one_head, held_out, examples(200, 0))
    [warning] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "a service accepts no digit of this version at its default target error rate of 0.5%" in warning
    assert reason in warning
    assert not accepts_by_default(record)


def test_a_version_that_accepts_digits_is_not_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    record: dict[str, Any] = assess(one_head, examples(5_000, 0), examples(200, 0))
    assert accepts_by_default(record)
    assert "warning" not in capsys.readouterr().out


def test_the_default_error_rate_is_the_services() -> None:
    assert Settings.model_fields["target_error_rate"].default == DEFAULT_ERROR


def test_the_recorded_effect_of_a_threshold_is_that_of_the_answers() -> None:
    test = examples(1_000, 7)
    record = assess(one_head, examples(10_000, 0), test)
    logits = one_head(test.images)[0] / record["temperature"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, correct = score(probabilities, test.labels)
    found = record["thresholds"]["0.01"]
    assert found["test_errors"] == accept(confidence, correct, found["threshold"]).errors == 7
    fields = record["fields"]["2"]["thresholds"]["0.05"]
    products, all_correct = score_fields(confidence, correct, 2)
    assert fields["test_errors"] == accept(products, all_correct, fields["threshold"]).errors == 4
