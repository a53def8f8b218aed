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
        return f"{self.name}, {self.datatype} [n, {', '.join(map(str, self.dims))}]"


def _tensors(named: dict[str, tuple[str, list[int | None]]]) -> dict[str, Tensor]:
    datatypes = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
    return {
        name: Tensor(name, datatypes[kind], tuple(size for size in shape if size is not None))
        for name, (kind, shape) in named.items()
    }


INPUTS = _tensors(contract.INPUTS)
OUTPUTS = _tensors(contract.OUTPUTS)
_IMAGES = INPUTS["images"]


def images(request: pb.ModelInferRequest) -> bytes:
    """The images in a request: n times 784 bytes, n at least 1, whether they came raw or typed.

    Raises:
        InvalidRequest: the request does not hold the one tensor that the models take, and nothing else.
    """
    if len(request.inputs) != 1:
        raise InvalidRequest(f"there are {len(request.inputs)} inputs, expected one: {_IMAGES}")
    tensor = request.inputs[0]
    if tensor.name != _IMAGES.name:
        raise InvalidRequest(f"there is no input {shown(tensor.name)}, expected {_IMAGES}")
    if tensor.datatype != _IMAGES.datatype:
        raise InvalidRequest(f"images is of datatype {shown(tensor.datatype)}, expected {_IMAGES}")
    shape = tensor.shape
    if len(shape) != 1 + len(_IMAGES.dims) or shape[0] < 1 or tuple(shape[1:]) != _IMAGES.dims:
        axes = ", ".join(map(str, shape[:_SHOWN_AXES])) + (", ..." if len(shape) > _SHOWN_AXES else "")
        raise InvalidRequest(f"images has shape [{axes}], expected {_IMAGES}, n at least 1")
    _refuse_elsewhere(tensor)
    count = shape[0]
    expected = count * contract.IMAGE_BYTES
    pixels = _raw(request) if request.raw_input_contents else _typed(tensor)
    if len(pixels) != expected:
        raise InvalidRequest(f"images holds {len(pixels)} bytes, expected {expected}: {count} times 28 rows of 28 pixels")
    return pixels


def _raw(request: pb.ModelInferRequest) -> bytes:
    if len(request.raw_input_contents) != 1:
        raise InvalidRequest(f"raw_input_contents has {len(request.raw_input_contents)} entries for 1 input")
    if request.inputs[0].HasField("contents"):
        raise InvalidRequest("images has contents although raw_input_contents are there: one tensor came twice")
    return request.raw_input_contents[0]


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> bytes:
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    if fields != ["uint_contents"]:
        found = f"its contents are {' and '.join(fields)}" if fields else "it has no contents"
        raise InvalidRequest(f"images is UINT8, which travels in uint_contents or in raw_input_contents, but {found}")
    values = np.asarray(tensor.contents.uint_contents, np.uint32)
    largest = int(values.max())
    if largest > 255:
        raise InvalidRequest(f"images holds the value {largest}, expected UINT8: 0 to 255")
    return values.astype(np.uint8).tobytes()


def wanted(request: pb.ModelInferRequest) -> list[str]:
    """The names of the outputs that a request asks for, in its order; all of them when it names none.

    Raises:
        InvalidRequest: one is no output of the models, or is asked for twice, or is wanted elsewhere than in the answer.
    """
    names: list[str] = []
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidRequest(f"there is no output {shown(output.name)}, expected any of {', '.join(OUTPUTS)}")
        if output.name in names:
            raise InvalidRequest(f"output {output.name} is asked for twice")
        if "classification" in output.parameters:
            raise InvalidRequest(f"output {output.name} is asked for as a classification, expected as a tensor")
        _refuse_elsewhere(output)
        names.append(output.name)
    return names or [*OUTPUTS]


def answer(response: pb.ModelInferResponse, outputs: Iterable[tuple[str, NDArray[np.float32]]], *, raw: bool) -> None:
    """Puts the outputs of the model, each with its name, (n, 10) float32, into `response`, in their order."""
    for name, values in outputs:
        tensor = response.outputs.add(name=name, datatype=OUTPUTS[name].datatype, shape=values.shape)
        if raw:
            response.raw_output_contents.append(values.astype("<f4", copy=False).tobytes())
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
