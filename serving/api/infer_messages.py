"""The messages of ModelInfer and ModelStreamInfer: bytes to requests, and answers to bytes."""

from typing import NamedTuple

import numpy as np

from serving.api import tensors
from serving.api.bounds import LONGEST_TEXT, require_short_texts
from serving.api.side_thread import LONG_BYTES
from serving.api.typed_pixels import cut_pixels
from serving.api.wire import MOST_FIELDS, parse_message
from serving.errors import InvalidRequest, RequestError, Unsupported
from serving.pb.inference import open_inference_pb2 as pb
from serving.recognition.reading import Images, Reading, ReadOptions, Verdict

# Triton's signal to clients that read a stream until a request has had all its answers; here it has one.
FINAL = "triton_final_response"

_PRIORITIES: dict[str | int | None, bool] = {"live": False, "batch": True, 0: False, 1: False, 2: True}  # is it batch?


class InferRequest(NamedTuple):
    """A request to run a model.

    Attributes:
        id: the caller's id of the request, which the answer repeats.
        images: the images, or crops.
        options: the options.
        outputs: names of the outputs to return, in order; none for all outputs of the model.
        raw: True to return tensors as raw bytes, False to return typed contents.
    """

    id: str
    images: Images
    options: ReadOptions
    outputs: list[str]
    raw: bool


class InferAnswer(NamedTuple):
    """The answer to a request to run a model; `verdict` is None where the request did not ask for decisions."""

    request: InferRequest
    reading: Reading
    verdict: Verdict | None


def parse_infer(encoded: bytes, most_crops: int = MOST_FIELDS) -> InferRequest:
    """Parses a ModelInferRequest with at most `most_crops` crops."""
    encoded, typed = cut_pixels(encoded) if len(encoded) > LONG_BYTES else (encoded, None)
    request = parse_message(pb.ModelInferRequest, encoded)
    require_short_texts(request)
    if "sequence_id" in request.parameters:
        raise Unsupported("this server has no sequences: every request is independent")
    images = Images(*tensors.parse_images(request, typed, most_crops))
    outputs = tensors.parse_output_names(request)
    options = ReadOptions(
        model=request.model_name,
        version=request.model_version,
        key=_key(request),
        target_error_rate=_target_error_rate(request),
        timeout_seconds=_timeout_seconds(request),
        partial="decisions" in outputs,  # without decisions, a caller would not see which crops could not be decoded
        audit=False,  # the protocol has no place for the mark
        batch=_is_batch(request),
    )
    return InferRequest(request.id, images, options, outputs, bool(request.raw_input_contents))


def encode_infer(answer: InferAnswer) -> bytes:
    """Encodes a ModelInferResponse."""
    response = pb.ModelInferResponse()
    _fill(response, answer)
    return response.SerializeToString()


def encode_stream_infer(answer: InferAnswer) -> bytes:
    """Encodes the answer to one request of a stream as a ModelStreamInferResponse."""
    response = pb.ModelStreamInferResponse()
    _fill(response.infer_response, answer)
    response.infer_response.parameters[FINAL].bool_param = True
    return response.SerializeToString()


def refuse_in_stream(encoded: bytes, error: RequestError) -> bytes:
    """Encodes the error of one request of a stream as a ModelStreamInferResponse, with the id of the request."""
    response = pb.ModelStreamInferResponse(error_message=str(error))
    request_id = pb.ModelInferRequest.FromString(cut_pixels(encoded).request).id
    if len(request_id) <= LONGEST_TEXT:  # else it is the error
        response.infer_response.id = request_id
    return response.SerializeToString()


def _fill(response: pb.ModelInferResponse, answer: InferAnswer) -> None:
    request, reading, verdict = answer
    response.id = request.id
    response.model_name = reading.loaded.name
    response.model_version = reading.loaded.version
    outputs: dict[str, tensors.Values] = {
        "logits": reading.logits,
        "probabilities": reading.probabilities,
        "whole": reading.whole[:, np.newaxis],
    }
    if verdict is not None:
        outputs["decisions"] = verdict.decisions
        response.parameters["recognition_id"].string_param = verdict.recognition_id
        response.parameters["captured"].bool_param = verdict.captured
        if verdict.threshold:
            response.parameters["threshold"].double_param = verdict.threshold.confidence
            response.parameters["target_error_rate"].double_param = verdict.threshold.target_error_rate
    names = request.outputs or tensors.OUTPUTS[reading.loaded.model.metadata.contract]
    tensors.add_outputs(response, ((name, outputs[name]) for name in names), raw=request.raw)


def _timeout_seconds(request: pb.ModelInferRequest) -> float:
    """Reads the parameter `timeout`, microseconds, as seconds; 0 without one."""
    if "timeout" not in request.parameters:
        return 0.0
    value = request.parameters["timeout"]
    kind = value.WhichOneof("parameter_choice")
    microseconds = value.int64_param if kind == "int64_param" else value.uint64_param
    if kind not in ("int64_param", "uint64_param") or microseconds < 0:
        raise InvalidRequest("parameter timeout is not a number of microseconds, expected 0 or more, as int64_param")
    return microseconds / 1e6


def _key(request: pb.ModelInferRequest) -> str:
    """Reads the parameter `key`; "" without one."""
    if "key" not in request.parameters:
        return ""
    value = request.parameters["key"]
    if value.WhichOneof("parameter_choice") != "string_param":
        raise InvalidRequest("parameter key is not a string, expected one, as string_param")
    if len(value.string_param) > LONGEST_TEXT:
        raise InvalidRequest(f"parameter key has {len(value.string_param)} characters, expected {LONGEST_TEXT} at most")
    return value.string_param


def _is_batch(request: pb.ModelInferRequest) -> bool:
    """Reads the parameter `priority`, a name or a level of Triton, of which 1 is the highest and 0 the default."""
    if "priority" not in request.parameters:
        return False
    value = request.parameters["priority"]
    kind = value.WhichOneof("parameter_choice")
    found = getattr(value, kind) if kind in ("string_param", "int64_param", "uint64_param") else None
    if found not in _PRIORITIES:
        quoted = tensors.quote(found) if isinstance(found, str) else found
        was = "of another type" if found is None else quoted
        raise InvalidRequest(
            f"parameter priority is {was}, expected live or batch, as string_param; or 0 or 1 (live) or 2 (batch), as "
            "uint64_param"
        )
    return _PRIORITIES[found]


def _target_error_rate(request: pb.ModelInferRequest) -> float:
    """Reads the parameter `target_error_rate`; 0 without one."""
    if "target_error_rate" not in request.parameters:
        return 0.0
    value = request.parameters["target_error_rate"]
    if value.WhichOneof("parameter_choice") != "double_param":
        raise InvalidRequest("parameter target_error_rate is not a number, expected a share below 1, as double_param")
    return value.double_param
