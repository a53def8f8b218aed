"""Properties of the tensor parsers, on requests that hypothesis makes up. `make fuzz` searches further."""

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from serving.api import tensors
from serving.errors import InvalidRequest
from serving.pb.inference import open_inference_pb2 as pb
from tests.support.infer_calls import crop_request, image_request

IMAGE = 784

# A request of some kilobytes is large for hypothesis, and no test asserts its time. The examples are the same in each run,
# so that a failure is due to a change of the code.
patient = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

stacks = st.integers(1, 3).flatmap(lambda count: arrays(np.uint8, (count, 28, 28)))
floats = arrays(np.float32, st.tuples(st.integers(1, 5), st.just(10)), elements=st.floats(width=32, allow_nan=False))

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


@patient
@given(stacks, st.booleans())
def test_sent_images_are_parsed_unchanged(images: NDArray[np.uint8], raw: bool) -> None:
    encoded = image_request(images, raw=raw).SerializeToString()
    assert tensors.parse_images(pb.ModelInferRequest.FromString(encoded)) == (images.tobytes(), [])


@patient
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.booleans())
def test_sent_crops_are_parsed_unchanged(files: list[bytes], raw: bool) -> None:
    encoded = crop_request(files, raw=raw).SerializeToString()
    assert tensors.parse_images(pb.ModelInferRequest.FromString(encoded)) == (b"", files)


@patient
@given(floats, st.permutations(["logits", "probabilities"]), st.integers(1, 2))
def test_added_outputs_are_read_back_unchanged(values: NDArray[np.float32], names: list[str], count: int) -> None:
    added = list(zip(names[:count], (values, -values), strict=False))
    raw, typed = pb.ModelInferResponse(), pb.ModelInferResponse()
    tensors.add_outputs(raw, added, raw=True)
    tensors.add_outputs(typed, added, raw=False)
    for response in (raw, typed):
        assert [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in response.outputs] == [
            (name, "FP32", value.shape) for name, value in added
        ]
    for (_, value), content, tensor in zip(added, raw.raw_output_contents, typed.outputs, strict=True):
        np.testing.assert_array_equal(np.frombuffer(content, "<f4").reshape(value.shape), value)
        np.testing.assert_array_equal(np.array(tensor.contents.fp32_contents, np.float32).reshape(value.shape), value)
    assert not any(tensor.HasField("contents") for tensor in raw.outputs)
    assert not typed.raw_output_contents


def assert_short(error: InvalidRequest) -> None:
    assert 0 < len(str(error)) < 1000, "the message travels in a header"


def check(request: pb.ModelInferRequest) -> None:
    """Asserts that each parser returns exactly what the request declares, or raises InvalidRequest."""
    try:
        pixels, files = tensors.parse_images(request)
    except InvalidRequest as error:
        assert_short(error)
    else:
        assert list(request.inputs[0].shape) == ([len(files)] if files else [len(pixels) // IMAGE, 28, 28])
        assert len(pixels) % IMAGE == 0
    try:
        parsed = tensors.parse_output_names(request)
    except InvalidRequest as error:
        assert_short(error)
    else:
        assert parsed == [output.name for output in request.outputs]
        assert len(set(parsed)) == len(parsed)


@patient
@given(requests)
@example(pb.ModelInferRequest())
def test_any_request_is_parsed_as_declared_or_refused(request_: pb.ModelInferRequest) -> None:
    check(request_)


@patient
@given(stacks, st.booleans(), st.data())
def test_a_damaged_request_is_parsed_as_declared_or_refused(
    images: NDArray[np.uint8], raw: bool, data: st.DataObject
) -> None:
    encoded = bytearray(image_request(images, raw=raw).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        # Names, types, shapes and lengths are among the first bytes.
        index = data.draw(st.integers(0, min(len(encoded), 60) - 1))
        encoded[index : index + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        request = pb.ModelInferRequest.FromString(bytes(encoded))
    except DecodeError:
        return
    check(request)
