import numpy as np
import pytest

from serving.api import tensors
from serving.errors import InvalidRequest
from serving.pb.inference import open_inference_pb2 as pb
from tests.support.infer_calls import crop_request, image_request

ONE = np.zeros((1, 28, 28), np.uint8)


def refusal(request: pb.ModelInferRequest) -> str:
    """Parses the images of an invalid request; returns the message of its error."""
    with pytest.raises(InvalidRequest) as refused:
        tensors.parse_images(request)
    return str(refused.value)


@pytest.mark.parametrize(
    ("shape", "quoted"),
    [
        ([], "[]"),
        ([28, 28], "[28, 28]"),
        ([0, 28, 28], "[0, 28, 28]"),
        ([-1, 28, 28], "[-1, 28, 28]"),
        ([1, 28, 28, 1], "[1, 28, 28, 1]"),
        ([1, 784], "[1, 784]"),
        ([1] * 1000, "[1, 1, 1, 1, 1, 1, 1, 1, ...]"),
    ],
)
def test_a_shape_other_than_a_stack_of_images_is_refused(shape: list[int], quoted: str) -> None:
    request = image_request(ONE)
    request.inputs[0].shape[:] = shape
    assert refusal(request) == f"images has shape {quoted}, expected images, UINT8 [n, 28, 28], n at least 1"


@pytest.mark.parametrize("count", [2, 2**32, 2**54, 2**63 - 1])
def test_a_shape_larger_than_its_contents_is_refused_without_overflow(count: int) -> None:
    request = image_request(ONE)
    request.inputs[0].shape[0] = count
    assert refusal(request) == f"images holds 784 bytes, expected {count * 784}: {count} times 28 rows of 28 pixels"


def test_images_of_a_type_other_than_uint8_are_refused() -> None:
    request = image_request(ONE)
    request.inputs[0].datatype = "FP32"
    assert refusal(request) == "images is of datatype 'FP32', expected images, UINT8 [n, 28, 28]"


def test_typed_values_above_255_are_refused() -> None:
    request = image_request(ONE, raw=False)
    request.inputs[0].contents.uint_contents[783] = 256
    assert refusal(request) == "images holds the value 256, expected UINT8: 0 to 255"


def test_typed_images_outside_uint_contents_are_refused() -> None:
    request = image_request(ONE, raw=False)
    request.inputs[0].ClearField("contents")
    assert refusal(request).endswith("but it has no contents")
    request.inputs[0].contents.int_contents.extend([0] * 784)
    assert refusal(request).endswith("but its contents are int_contents")
    request.inputs[0].contents.uint_contents.extend([0] * 784)
    assert refusal(request).endswith("but its contents are int_contents and uint_contents")


def test_images_both_typed_and_raw_are_refused() -> None:
    request = image_request(ONE, raw=False)
    request.raw_input_contents.append(bytes(784))
    assert refusal(request) == "images has contents and raw_input_contents, expected one of the two"


@pytest.mark.parametrize("entries", [2, 3])
def test_more_raw_entries_than_inputs_are_refused(entries: int) -> None:
    request = image_request(ONE)
    request.raw_input_contents.extend([b""] * (entries - 1))
    assert refusal(request) == f"raw_input_contents has {entries} entries for 1 input"


@pytest.mark.parametrize("count", [0, 2])
def test_a_request_without_exactly_one_input_is_refused(count: int) -> None:
    request = image_request(ONE)
    del request.inputs[:]
    request.inputs.extend([pb.ModelInferRequest.InferInputTensor(name="images")] * count)
    assert refusal(request) == f"there are {count} inputs, expected one: images, UINT8 [n, 28, 28]; or crops, BYTES [n]"


def test_a_long_name_is_shortened_in_the_error() -> None:
    request = image_request(ONE)
    request.inputs[0].name = "x" * 1_000_000
    assert refusal(request) == f"there is no input '{'x' * 64}'..., expected images, UINT8 [n, 28, 28]; or crops, BYTES [n]"


def test_tensors_in_shared_memory_are_refused() -> None:
    request = image_request(ONE)
    request.raw_input_contents.pop()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    assert refusal(request) == "images is in shared memory by its parameters, expected in the message"
    request.outputs.add(name="logits").parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(InvalidRequest, match="logits is in shared memory"):
        tensors.parse_output_names(request)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x03\0\0\0ab", "crops: element length exceeds the remaining bytes"),
        (b"\x02\0\0\0ab\x01\0", "crops: element length exceeds the remaining bytes"),
        (b"\xff\xff\xff\xff", "crops: element length exceeds the remaining bytes"),
        (b"", "crops holds 0 elements, expected 1"),
        (b"\0\0\0\0\0\0\0\0", "crops holds more elements, expected 1"),
    ],
)
def test_raw_crops_whose_lengths_do_not_add_up_are_refused(content: bytes, reason: str) -> None:
    request = crop_request([b""], raw=True)
    request.raw_input_contents[0] = content
    assert reason in refusal(request)


def test_crops_of_another_shape_or_type_are_refused() -> None:
    request = crop_request([b"a"], raw=False)
    request.inputs[0].shape.append(1)
    assert refusal(request) == "crops has shape [1, 1], expected crops, BYTES [n], n at least 1"
    request.inputs[0].datatype = "UINT8"
    assert refusal(request) == "crops is of datatype 'UINT8', expected crops, BYTES [n]"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["digits"], "there is no output 'digits', expected any of logits, probabilities, whole, decisions"),
        (["logits", "logits"], "output logits is requested twice, expected once"),
    ],
)
def test_unknown_and_repeated_outputs_are_refused(names: list[str], reason: str) -> None:
    request = pb.ModelInferRequest()
    for name in names:
        request.outputs.add(name=name)
    with pytest.raises(InvalidRequest) as refused:
        tensors.parse_output_names(request)
    assert str(refused.value) == reason


def test_an_output_requested_as_a_classification_is_refused() -> None:
    request = pb.ModelInferRequest()
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    with pytest.raises(InvalidRequest, match="requested as a classification"):
        tensors.parse_output_names(request)


@pytest.mark.parametrize("raw", [True, False])
def test_decisions_are_sent_as_one_row_of_uint8(raw: bool) -> None:
    response = pb.ModelInferResponse()
    tensors.add_outputs(response, [("decisions", np.array([1, 2, 4], np.uint8))], raw=raw)
    [tensor] = response.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("decisions", "UINT8", [3])
    assert list(response.raw_output_contents[0] if raw else tensor.contents.uint_contents) == [1, 2, 4]


def test_columns_of_the_model_output_are_sent_row_by_row() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(2, 20)
    response = pb.ModelInferResponse()
    tensors.add_outputs(response, [("probabilities", rows[:, 10:])], raw=True)
    assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [*range(10, 20), *range(30, 40)]
