"""The tensors of the Open Inference Protocol: images out of a request, outputs into an answer.

Every function is pure. A request may hold anything: a parser returns tensors that match it, or raises InvalidRequest.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.api.bounds import require_few_parameters
from serving.api.typed_pixels import decode_pixels
from serving.api.wire import MOST_FIELDS
from serving.errors import InvalidRequest
from serving.pb.inference import open_inference_pb2 as pb

Values = NDArray[np.float32] | NDArray[np.uint8]

# Limits on quotes from a request in an error message, which travels in a header.
_QUOTED_CHARACTERS = 64
_QUOTED_AXES = 8


@dataclass(frozen=True)
class Tensor:
    """An input or output of every model.

    Attributes:
        name: name of the tensor.
        datatype: the protocol's name of its type.
        dims: its shape without the first axis, which counts the images.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """The whole shape in the protocol's form, with -1 for any number of images."""
        return [-1, *self.dims]

    def __str__(self) -> str:
        return f"{self.name}, {self.datatype} [{', '.join(('n', *map(str, self.dims)))}]"


def _list_tensors(specification: contract.Tensors) -> dict[str, Tensor]:
    datatypes = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
    return {
        name: Tensor(name, datatypes[kind], tuple(size for size in shape if size is not None))
        for name, (kind, shape) in specification.items()
    }


INPUTS = _list_tensors(contract.INPUTS)
OUTPUTS = {version: _list_tensors(outputs) for version, outputs in contract.OUTPUTS.items()}
"""The outputs of a model, by the version of its contract."""

_IMAGES = INPUTS["images"]

# Tensors of the server instead of a model: a request may name them, and the metadata of a model doesn't list them. A request
# may also name an output that the answering model lacks, because it can't know which version will answer.
_CROPS = Tensor("crops", "BYTES", ())
_DECISIONS = Tensor("decisions", "UINT8", ())
_REQUESTABLE = {name: tensor for outputs in OUTPUTS.values() for name, tensor in outputs.items()} | {"decisions": _DECISIONS}


def parse_images(
    request: pb.ModelInferRequest, typed: memoryview | None = None, most_crops: int = MOST_FIELDS
) -> tuple[bytes, list[bytes]]:
    """Extracts the images or the crops of a request, from raw or typed contents.

    Args:
        request: the request.
        typed: packed content of `uint_contents`, where it was cut out of the request.
        most_crops: crops in one request, at most, and never above MOST_FIELDS.

    Returns:
        n images of 784 bytes, and no crops; or no images, and n crops. n is at least 1.

    Raises:
        InvalidRequest: the request does not hold exactly one of the two, or its contents don't match its shape.
    """
    if len(request.inputs) != 1:
        raise InvalidRequest(f"there are {len(request.inputs)} inputs, expected one: {_IMAGES}; or {_CROPS}")
    tensor = request.inputs[0]
    expected = {known.name: known for known in (_IMAGES, _CROPS)}.get(tensor.name)
    if not expected:
        raise InvalidRequest(f"there is no input {quote(tensor.name)}, expected {_IMAGES}; or {_CROPS}")
    if tensor.datatype != expected.datatype:
        raise InvalidRequest(f"{tensor.name} is of datatype {quote(tensor.datatype)}, expected {expected}")
    shape = tensor.shape
    if len(shape) != 1 + len(expected.dims) or shape[0] < 1 or tuple(shape[1:]) != expected.dims:
        axes = ", ".join(map(str, shape[:_QUOTED_AXES])) + (", ..." if len(shape) > _QUOTED_AXES else "")
        raise InvalidRequest(f"{tensor.name} has shape [{axes}], expected {expected}, n at least 1")
    _refuse_shared_memory(tensor)
    if expected is _IMAGES:
        return _parse_pixels(request, shape[0], typed), []
    if typed is not None:
        raise InvalidRequest(
            "crops is BYTES, which travels in bytes_contents or in raw_input_contents, not in uint_contents"
        )
    most = min(most_crops, MOST_FIELDS)
    if shape[0] > most:  # the elements of raw contents are no fields, which were counted, but cost about as much
        raise InvalidRequest(f"crops holds {shape[0]} images, this server takes {most} a call")
    return b"", _parse_files(request, shape[0])


def parse_output_names(request: pb.ModelInferRequest) -> list[str]:
    """Lists the outputs that a request names, in its order; none for all outputs of the model that answers.

    Raises:
        InvalidRequest: an output is unknown, or named twice, or requested in a form that this server does not offer.
    """
    names: list[str] = []
    for output in request.outputs:
        if output.name not in _REQUESTABLE:
            raise InvalidRequest(f"there is no output {quote(output.name)}, expected any of {', '.join(_REQUESTABLE)}")
        if output.name in names:
            raise InvalidRequest(f"output {output.name} is requested twice, expected once")
        if "classification" in output.parameters:
            raise InvalidRequest(f"output {output.name} is requested as a classification, expected as a tensor")
        _refuse_shared_memory(output)
        names.append(output.name)
    return names


def add_outputs(response: pb.ModelInferResponse, outputs: Iterable[tuple[str, Values]], *, raw: bool) -> None:
    """Adds outputs to a response.

    Args:
        response: receives the outputs.
        outputs: names with values, in order: (n, 10) float32, (n, 1) float32 for whole, or (n,) uint8 for decisions.
        raw: True for raw bytes, False for typed contents.
    """
    for name, values in outputs:
        datatype = _REQUESTABLE[name].datatype
        tensor = response.outputs.add(name=name, datatype=datatype, shape=values.shape)
        if raw:
            response.raw_output_contents.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        elif datatype == "UINT8":
            tensor.contents.uint_contents.extend(values.tolist())
        else:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())


def quote(text: str) -> str:
    """Quotes text from a request for an error message, shortened to 64 characters."""
    return repr(text) if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]!r}..."


def _parse_pixels(request: pb.ModelInferRequest, count: int, typed: memoryview | None) -> bytes:
    if request.raw_input_contents:
        pixels = _parse_raw(request)
    elif typed is not None and not request.inputs[0].contents.ListFields():
        pixels = decode_pixels(typed)
    else:
        pixels = _parse_typed(request.inputs[0])
    expected = count * contract.IMAGE_BYTES
    if len(pixels) != expected:
        raise InvalidRequest(f"images holds {len(pixels)} bytes, expected {expected}: {count} times 28 rows of 28 pixels")
    return pixels


def _parse_files(request: pb.ModelInferRequest, count: int) -> list[bytes]:
    """Parses a BYTES tensor. In raw form, the length of each element precedes it: four bytes, little-endian."""
    if not request.raw_input_contents:
        _require_contents(request.inputs[0], "bytes_contents")
        files = request.inputs[0].contents.bytes_contents[: count + 1]
    else:
        content, files = memoryview(_parse_raw(request)), []
        while content and len(files) <= count:
            end = 4 + int.from_bytes(content[:4], "little")
            if end > len(content):
                raise InvalidRequest(
                    "crops: element length exceeds the remaining bytes; expected each element after its length in four "
                    "bytes, little-endian"
                )
            files.append(bytes(content[4:end]))
            content = content[end:]
    if len(files) != count:
        raise InvalidRequest(f"crops holds {'more' if len(files) > count else len(files)} elements, expected {count}")
    return files


def _parse_raw(request: pb.ModelInferRequest) -> bytes:
    if len(request.raw_input_contents) != 1:
        raise InvalidRequest(f"raw_input_contents has {len(request.raw_input_contents)} entries for 1 input")
    if request.inputs[0].HasField("contents"):
        raise InvalidRequest(f"{request.inputs[0].name} has contents and raw_input_contents, expected one of the two")
    return request.raw_input_contents[0]


def _parse_typed(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes:
    _require_contents(tensor, "uint_contents")
    values = np.asarray(tensor.contents.uint_contents, np.uint32)
    largest = int(values.max())
    if largest > 255:
        raise InvalidRequest(f"images holds the value {largest}, expected UINT8: 0 to 255")
    return values.astype(np.uint8).tobytes()


def _require_contents(tensor: pb.ModelInferRequest.InferInputTensor, expected: str) -> None:
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    if fields != [expected]:
        found = f"its contents are {' and '.join(fields)}" if fields else "it has no contents"
        raise InvalidRequest(
            f"{tensor.name} is {tensor.datatype}, which travels in {expected} or in raw_input_contents, but {found}"
        )


def _refuse_shared_memory(
    tensor: pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor,
) -> None:
    """Refuses a tensor in memory that client and server share, which Triton's clients announce in a parameter."""
    require_few_parameters(tensor)
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest(f"{tensor.name} is in shared memory by its parameters, expected in the message")
