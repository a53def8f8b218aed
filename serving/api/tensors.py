"""The tensors of the Open Inference Protocol: images out of a request, outputs into an answer.

Pure functions over messages that anybody may send: whatever is in them, reading ends with an answer or with InvalidRequest.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.errors import InvalidRequest
from serving.pb.inference import open_inference_pb2 as pb

Values = NDArray[np.float32] | NDArray[np.uint8]

# Of each, as much as tells its sender which it was: error messages travel in headers, and those have little room.
_SHOWN_CHARACTERS = 64
_SHOWN_AXES = 8


@dataclass(frozen=True)
class Tensor:
    """One input or output of every model.

    Attributes:
        name: its name.
        datatype: its type, as the protocol names it.
        dims: its shape without the first axis, which is that of the images.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """With the first axis, as the protocol writes it: -1 for any number of images."""
        return [-1, *self.dims]

    def __str__(self) -> str:
        return f"{self.name}, {self.datatype} [{', '.join(('n', *map(str, self.dims)))}]"


def _tensors(named: dict[str, tuple[str, list[int | None]]]) -> dict[str, Tensor]:
    datatypes = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
    return {
        name: Tensor(name, datatypes[kind], tuple(size for size in shape if size is not None))
        for name, (kind, shape) in named.items()
    }


INPUTS = _tensors(contract.INPUTS)
OUTPUTS = _tensors(contract.OUTPUTS)
_IMAGES = INPUTS["images"]

# What the server itself takes and gives besides: it is asked for by name, and no model's metadata list it.
_CROPS = Tensor("crops", "BYTES", ())
_DECISIONS = Tensor("decisions", "UINT8", ())
_GIVEN = {**OUTPUTS, _DECISIONS.name: _DECISIONS}


def images(request: pb.ModelInferRequest) -> tuple[bytes, list[bytes]]:
    """The images in a request, n times 784 bytes, or its crops, n at least 1, whether they came raw or typed.

    Raises:
        InvalidRequest: the request holds neither or both, or anything else.
    """
    if len(request.inputs) != 1:
        raise InvalidRequest(f"there are {len(request.inputs)} inputs, expected one: {_IMAGES}; or {_CROPS}")
    tensor = request.inputs[0]
    expected = {one.name: one for one in (_IMAGES, _CROPS)}.get(tensor.name)
    if not expected:
        raise InvalidRequest(f"there is no input {shown(tensor.name)}, expected {_IMAGES}; or {_CROPS}")
    if tensor.datatype != expected.datatype:
        raise InvalidRequest(f"{tensor.name} is of datatype {shown(tensor.datatype)}, expected {expected}")
    shape = tensor.shape
    if len(shape) != 1 + len(expected.dims) or shape[0] < 1 or tuple(shape[1:]) != expected.dims:
        axes = ", ".join(map(str, shape[:_SHOWN_AXES])) + (", ..." if len(shape) > _SHOWN_AXES else "")
        raise InvalidRequest(f"{tensor.name} has shape [{axes}], expected {expected}, n at least 1")
    _refuse_elsewhere(tensor)
    if expected is _IMAGES:
        return _pixels(request, shape[0]), []
    return b"", _files(request, shape[0])


def _pixels(request: pb.ModelInferRequest, count: int) -> bytes:
    pixels = _raw(request) if request.raw_input_contents else _typed(request.inputs[0])
    expected = count * contract.IMAGE_BYTES
    if len(pixels) != expected:
        raise InvalidRequest(f"images holds {len(pixels)} bytes, expected {expected}: {count} times 28 rows of 28 pixels")
    return pixels


def _files(request: pb.ModelInferRequest, count: int) -> list[bytes]:
    """The elements of a BYTES tensor; raw, each comes after its length in four bytes, the lowest first."""
    if not request.raw_input_contents:
        _require_contents(request.inputs[0], "bytes_contents")
        files = list(request.inputs[0].contents.bytes_contents)
    else:
        content, files = memoryview(_raw(request)), []
        while content and len(files) <= count:
            end = 4 + int.from_bytes(content[:4], "little")
            if end > len(content):
                raise InvalidRequest("crops is cut off: an element, after its length in four bytes, is shorter than that")
            files.append(bytes(content[4:end]))
            content = content[end:]
    if len(files) != count:
        raise InvalidRequest(f"crops holds {'more' if len(files) > count else len(files)} elements, expected {count}")
    return files


def _raw(request: pb.ModelInferRequest) -> bytes:
    if len(request.raw_input_contents) != 1:
        raise InvalidRequest(f"raw_input_contents has {len(request.raw_input_contents)} entries for 1 input")
    if request.inputs[0].HasField("contents"):
        raise InvalidRequest(
            f"{request.inputs[0].name} has contents although raw_input_contents are there: one tensor came twice"
        )
    return request.raw_input_contents[0]


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes:
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


def wanted(request: pb.ModelInferRequest) -> list[str]:
    """The names of the outputs that a request asks for, in its order; all of the model's own when it names none.

    Raises:
        InvalidRequest: one is no output of the models, or is asked for twice, or is wanted elsewhere than in the answer.
    """
    names: list[str] = []
    for output in request.outputs:
        if output.name not in _GIVEN:
            raise InvalidRequest(f"there is no output {shown(output.name)}, expected any of {', '.join(_GIVEN)}")
        if output.name in names:
            raise InvalidRequest(f"output {output.name} is asked for twice")
        if "classification" in output.parameters:
            raise InvalidRequest(f"output {output.name} is asked for as a classification, expected as a tensor")
        _refuse_elsewhere(output)
        names.append(output.name)
    return names or [*OUTPUTS]


def answer(response: pb.ModelInferResponse, outputs: Iterable[tuple[str, Values]], *, raw: bool) -> None:
    """Puts outputs, each with its name, (n, 10) float32 or, of decisions, (n,) uint8, into `response`, in their order."""
    for name, values in outputs:
        datatype = _GIVEN[name].datatype
        tensor = response.outputs.add(name=name, datatype=datatype, shape=values.shape)
        if raw:
            response.raw_output_contents.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        elif datatype == "UINT8":
            tensor.contents.uint_contents.extend(values.tolist())
        else:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())


def shown(text: str) -> str:
    """A caller's own words, quoted and short enough for an error message."""
    return repr(text) if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]!r}..."


def _refuse_elsewhere(
    tensor: pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor,
) -> None:
    """Triton's clients can leave a tensor in memory that they share with the server, and say so in a parameter."""
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest(f"{tensor.name} is said to be in shared memory, expected in the message")
