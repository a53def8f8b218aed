import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from serving.api import tensors
from serving.errors import InvalidRequest
from serving.pb.inference import open_inference_pb2 as pb

IMAGE = 784

# A request is some kilobytes, which hypothesis deems much; time is never asserted here. The examples are the same each time,
# so that a change is judged by itself; `make fuzz` looks for new ones.
patiently = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

stacks = st.integers(1, 3).flatmap(lambda count: arrays(np.uint8, (count, 28, 28)))
floats = arrays(np.float32, st.tuples(st.integers(1, 5), st.just(10)), elements=st.floats(width=32, allow_nan=False))


def ask(images: NDArray[np.uint8], *, raw: bool) -> pb.ModelInferRequest:
    """A request that is as it should be."""
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    if raw:
        request.raw_input_contents.append(images.tobytes())
    else:
        tensor.contents.uint_contents.extend(images.ravel().tolist())
    return request


def refusal(request: pb.ModelInferRequest) -> str:
    with pytest.raises(InvalidRequest) as refused:
        tensors.images(request)
    return str(refused.value)


@patiently
@given(stacks, st.booleans())
def test_images_come_out_as_they_went_in_raw_or_typed(images: NDArray[np.uint8], raw: bool) -> None:
    sent = ask(images, raw=raw).SerializeToString()
    assert tensors.images(pb.ModelInferRequest.FromString(sent)) == (images.tobytes(), [])


def ask_for_crops(files: list[bytes], *, raw: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="crops", datatype="BYTES", shape=[len(files)])
    if raw:
        request.raw_input_contents.append(b"".join(len(file).to_bytes(4, "little") + file for file in files))
    else:
        tensor.contents.bytes_contents.extend(files)
    return request


@patiently
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.booleans())
def test_crops_come_out_as_they_went_in_raw_or_typed(files: list[bytes], raw: bool) -> None:
    sent = ask_for_crops(files, raw=raw).SerializeToString()
    assert tensors.images(pb.ModelInferRequest.FromString(sent)) == (b"", files)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x03\0\0\0ab", "crops is cut off"),
        (b"\x02\0\0\0ab\x01\0", "crops is cut off"),
        (b"\xff\xff\xff\xff", "crops is cut off"),
        (b"", "crops holds 0 elements, expected 1"),
        (b"\0\0\0\0\0\0\0\0", "crops holds more elements, expected 1"),
    ],
)
def test_raw_crops_that_are_not_what_they_say_are_refused(content: bytes, reason: str) -> None:
    request = ask_for_crops([b""], raw=True)
    request.raw_input_contents[0] = content
    assert reason in refusal(request)


def test_crops_are_bytes_in_one_row() -> None:
    request = ask_for_crops([b"a"], raw=False)
    request.inputs[0].shape.append(1)
    assert refusal(request) == "crops has shape [1, 1], expected crops, BYTES [n], n at least 1"
    request.inputs[0].datatype = "UINT8"
    assert refusal(request) == "crops is of datatype 'UINT8', expected crops, BYTES [n]"


@pytest.mark.parametrize("raw", [True, False])
def test_decisions_are_small_numbers_in_one_row(raw: bool) -> None:
    response = pb.ModelInferResponse()
    tensors.answer(response, [("decisions", np.array([1, 2, 4], np.uint8))], raw=raw)
    [tensor] = response.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("decisions", "UINT8", [3])
    said = list(response.raw_output_contents[0]) if raw else list(tensor.contents.uint_contents)
    assert said == [1, 2, 4]


@patiently
@given(floats, st.permutations(["logits", "probabilities"]), st.integers(1, 2))
def test_outputs_come_out_as_they_went_in_raw_and_typed(values: NDArray[np.float32], names: list[str], count: int) -> None:
    outputs = list(zip(names[:count], (values, -values), strict=False))
    raw, typed = pb.ModelInferResponse(), pb.ModelInferResponse()
    tensors.answer(raw, outputs, raw=True)
    tensors.answer(typed, outputs, raw=False)
    for response in (raw, typed):
        assert [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in response.outputs] == [
            (name, "FP32", value.shape) for name, value in outputs
        ]
    for (_, value), bytes_, tensor in zip(outputs, raw.raw_output_contents, typed.outputs, strict=True):
        np.testing.assert_array_equal(np.frombuffer(bytes_, "<f4").reshape(value.shape), value)
        np.testing.assert_array_equal(np.array(tensor.contents.fp32_contents, np.float32).reshape(value.shape), value)
    assert not any(tensor.HasField("contents") for tensor in raw.outputs)
    assert not typed.raw_output_contents


def test_a_slice_of_the_model_s_rows_is_written_row_by_row() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(2, 20)
    response = pb.ModelInferResponse()
    tensors.answer(response, [("probabilities", rows[:, 10:])], raw=True)
    assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [*range(10, 20), *range(30, 40)]


names = st.one_of(st.sampled_from(["images", "crops", "logits", "probabilities", "decisions", ""]), st.text(max_size=200))
sizes = st.one_of(st.sampled_from([-1, 0, 1, 2, 28, 784]), st.integers(-(2**63), 2**63 - 1))
shapes = st.one_of(
    st.sampled_from([[1, 28, 28], [2, 28, 28], [0, 28, 28], [-1, 28, 28], [1], [2]]), st.lists(sizes, max_size=20)
)
parameters = st.dictionaries(
    st.one_of(st.sampled_from(["shared_memory_region", "classification"]), st.text(max_size=20)),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    max_size=2,
)
contents = st.one_of(
    st.builds(
        pb.InferTensorContents,
        uint_contents=st.one_of(
            st.sampled_from([[7] * IMAGE, [256] * IMAGE, [255] * 2 * IMAGE]), st.lists(st.integers(0, 2**32 - 1), max_size=5)
        ),
        bytes_contents=st.lists(st.binary(max_size=5), max_size=1),
    ),
    st.builds(pb.InferTensorContents, int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)),
)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=names,
    datatype=st.one_of(st.sampled_from(["UINT8", "FP32", "BYTES"]), st.text(max_size=5)),
    shape=shapes,
    parameters=parameters,
    contents=st.one_of(st.none(), contents),
)
outputs = st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=names, parameters=parameters)
requests = st.builds(
    pb.ModelInferRequest,
    inputs=st.lists(inputs, max_size=2),
    outputs=st.lists(outputs, max_size=3),
    raw_input_contents=st.lists(
        st.one_of(st.sampled_from([bytes(IMAGE), bytes(2 * IMAGE)]), st.binary(max_size=20)), max_size=2
    ),
)


def assert_short(error: InvalidRequest) -> None:
    assert 0 < len(str(error)) < 1000, "it travels in a header"


def check(request: pb.ModelInferRequest) -> None:
    """What is read is what the request says that it holds, and what is not read is refused."""
    try:
        pixels, files = tensors.images(request)
    except InvalidRequest as error:
        assert_short(error)
    else:
        assert list(request.inputs[0].shape) == ([len(files)] if files else [len(pixels) // IMAGE, 28, 28])
        assert len(pixels) % IMAGE == 0
    try:
        wanted = tensors.wanted(request)
    except InvalidRequest as error:
        assert_short(error)
    else:
        assert wanted == ([output.name for output in request.outputs] or ["logits", "probabilities"])
        assert len(set(wanted)) == len(wanted)


@patiently
@given(requests)
@example(pb.ModelInferRequest())
def test_whatever_a_request_holds_is_read_as_it_says_or_refused(request_: pb.ModelInferRequest) -> None:
    check(request_)


@patiently
@given(stacks, st.booleans(), st.data())
def test_a_broken_encoding_of_a_good_request_is_read_as_it_says_or_refused(
    images: NDArray[np.uint8], raw: bool, data: st.DataObject
) -> None:
    sent = bytearray(ask(images, raw=raw).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(sent), 60) - 1))  # where names, types, shapes and lengths are
        sent[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        request = pb.ModelInferRequest.FromString(bytes(sent))
    except DecodeError:
        return
    check(request)


@pytest.mark.parametrize(
    ("shape", "said"),
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
def test_a_shape_that_is_no_stack_of_images_is_refused(shape: list[int], said: str) -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=True)
    request.inputs[0].shape[:] = shape
    assert refusal(request) == f"images has shape {said}, expected images, UINT8 [n, 28, 28], n at least 1"


@pytest.mark.parametrize("count", [2, 2**32, 2**54, 2**63 - 1])
def test_a_shape_whose_size_would_overflow_is_refused_for_its_length(count: int) -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=True)
    request.inputs[0].shape[0] = count
    assert refusal(request) == f"images holds 784 bytes, expected {count * 784}: {count} times 28 rows of 28 pixels"


def test_a_type_other_than_uint8_is_refused() -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=True)
    request.inputs[0].datatype = "FP32"
    assert refusal(request) == "images is of datatype 'FP32', expected images, UINT8 [n, 28, 28]"


def test_values_above_255_are_refused() -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=False)
    request.inputs[0].contents.uint_contents[783] = 256
    assert refusal(request) == "images holds the value 256, expected UINT8: 0 to 255"


def test_a_tensor_in_the_field_of_another_type_is_refused() -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=False)
    request.inputs[0].ClearField("contents")
    assert refusal(request).endswith("but it has no contents")
    request.inputs[0].contents.int_contents.extend([0] * 784)
    assert refusal(request).endswith("but its contents are int_contents")
    request.inputs[0].contents.uint_contents.extend([0] * 784)
    assert refusal(request).endswith("but its contents are int_contents and uint_contents")


def test_a_tensor_that_comes_twice_is_refused() -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=False)
    request.raw_input_contents.append(bytes(784))
    assert "one tensor came twice" in refusal(request)


@pytest.mark.parametrize("entries", [2, 3])
def test_raw_entries_without_an_input_of_their_own_are_refused(entries: int) -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=True)
    request.raw_input_contents.extend([b""] * (entries - 1))
    assert refusal(request) == f"raw_input_contents has {entries} entries for 1 input"


@pytest.mark.parametrize("count", [0, 2])
def test_other_than_one_input_is_refused(count: int) -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=True)
    del request.inputs[:]
    request.inputs.extend([pb.ModelInferRequest.InferInputTensor(name="images")] * count)
    assert refusal(request) == f"there are {count} inputs, expected one: images, UINT8 [n, 28, 28]; or crops, BYTES [n]"


def test_a_long_name_is_shown_in_part() -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=True)
    request.inputs[0].name = "x" * 1_000_000
    assert refusal(request) == f"there is no input '{'x' * 64}'..., expected images, UINT8 [n, 28, 28]; or crops, BYTES [n]"


def test_tensors_in_shared_memory_are_refused() -> None:
    request = ask(np.zeros((1, 28, 28), np.uint8), raw=True)
    request.raw_input_contents.pop()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    assert refusal(request) == "images is said to be in shared memory, expected in the message"
    request.outputs.add(name="logits").parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(InvalidRequest, match="logits is said to be in shared memory"):
        tensors.wanted(request)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["digits"], "there is no output 'digits', expected any of logits, probabilities, decisions"),
        (["logits", "logits"], "output logits is asked for twice"),
    ],
)
def test_outputs_that_can_t_be_given_are_refused(asked: list[str], said: str) -> None:
    request = pb.ModelInferRequest()
    for name in asked:
        request.outputs.add(name=name)
    with pytest.raises(InvalidRequest) as refused:
        tensors.wanted(request)
    assert str(refused.value) == said


def test_a_classification_is_refused_rather_than_answered_as_something_else() -> None:
    request = pb.ModelInferRequest()
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    with pytest.raises(InvalidRequest, match="as a classification"):
        tensors.wanted(request)
