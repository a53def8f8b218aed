from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from serving.inference.classifier import BLANK, NOT_ONE_DIGIT, ONE_DIGIT, SHOWS, WHOLE
from serving.inference.metadata import ModelError, ModelMetadata
from serving.inference.model import open_model
from tests.support.model_files import SPECK, publish_contract_1, publish_whole, set_properties

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def three(images: Images) -> Images:
    """A digit, a speck and blank paper, (3, 28, 28) uint8."""
    return np.stack([images[0], SPECK, np.zeros((28, 28), np.uint8)])


def test_a_model_of_contract_2_says_which_images_are_one_whole_digit(tmp_path: Path, three: Images) -> None:
    model = open_model(publish_whole(tmp_path, 1).read_bytes(), "1")
    assert (model.metadata.contract, model.metadata.whole_threshold) == ("2", 0.5)
    rows = model.classify(three)
    np.testing.assert_array_equal(rows[:, WHOLE], np.array([0.9, 0.1, 0.1], np.float32))
    assert rows[:, SHOWS].tolist() == [ONE_DIGIT, NOT_ONE_DIGIT, BLANK]
    np.testing.assert_array_equal(model.infer(three), rows[:, : WHOLE + 1])


def test_a_model_of_contract_1_takes_every_image_with_ink_for_a_digit(tmp_path: Path, three: Images) -> None:
    model = open_model(publish_contract_1(tmp_path, 1).read_bytes(), "1")
    assert model.metadata.contract == "1"
    rows = model.classify(three)
    assert rows[:, WHOLE].tolist() == [1, 1, 1]
    assert rows[:, SHOWS].tolist() == [ONE_DIGIT, ONE_DIGIT, BLANK]


def test_both_contracts_give_the_same_digits(tmp_path: Path, images: Images) -> None:
    before, after = (open_model(publish(tmp_path, 1).read_bytes(), "1") for publish in (publish_contract_1, publish_whole))
    np.testing.assert_array_equal(before.infer(images[:50])[:, :WHOLE], after.infer(images[:50])[:, :WHOLE])


@pytest.mark.parametrize(
    ("threshold", "shows"), [("0.9", NOT_ONE_DIGIT), ("0.8999999", ONE_DIGIT), ("0.1", ONE_DIGIT), ("1", NOT_ONE_DIGIT)]
)
def test_whole_is_compared_without_rounding_the_threshold(tmp_path: Path, three: Images, threshold: str, shows: int) -> None:
    # In float32, 0.9 is 0.899999976: below 0.9.
    assert open_model(publish_whole(tmp_path, 1, threshold=threshold).read_bytes(), "1").classify(three)[0, SHOWS] == shows


@pytest.mark.parametrize("broken", ["range", "batch"])
def test_a_whole_that_is_no_probability_of_its_image_is_refused(tmp_path: Path, broken: str) -> None:
    reason = {"range": "`whole` is not a probability from 0 to 1", "batch": "an image's answer depends on the batch"}
    with pytest.raises(ModelError, match=reason[broken]) as refused:
        open_model(publish_whole(tmp_path, 1, broken=broken).read_bytes(), "1")
    assert refused.value.reason == "self_check"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"whole_threshold": None}, "its metadata lack whole_threshold, which version 2 requires"),
        ({"whole_threshold": "high"}, "its whole_threshold is 'high', expected a share from 0 to 1"),
        ({"whole_threshold": "1.5"}, "its whole_threshold is '1.5', expected a share from 0 to 1"),
        ({"whole_threshold": "nan"}, "its whole_threshold is 'nan'"),
        ({"contract": "1"}, "its outputs are"),
    ],
)
def test_contract_2_needs_its_output_and_its_threshold(tmp_path: Path, changes: dict[str, str | None], reason: str) -> None:
    file = publish_whole(tmp_path, 1)
    model = onnx.load(file)
    set_properties(model, **changes)
    onnx.save(model, file)
    with pytest.raises(ModelError, match=reason) as refused:
        open_model(file.read_bytes(), "1")
    assert refused.value.reason == "contract"


def test_contract_2_without_the_output_whole_is_refused(tmp_path: Path) -> None:
    file = publish_contract_1(tmp_path, 1)
    model = onnx.load(file)
    set_properties(model, contract="2", whole_threshold="0.5")
    onnx.save(model, file)
    with pytest.raises(ModelError, match=r"its outputs are .*expected .*whole"):
        open_model(file.read_bytes(), "1")


def test_a_whole_threshold_in_a_file_of_contract_1_is_ignored() -> None:
    labels = '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'
    properties = {"contract": "1", "labels": labels, "recipe": "r", "test_accuracy": "0.99", "whole_threshold": "high"}
    assert ModelMetadata.parse(properties).whole_threshold == 0
