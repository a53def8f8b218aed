"""ModelInfer, answered by the run: raw requests with one image, and their answers encoded together."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from serving.answers.decision import Threshold
from serving.api import tensors
from serving.api.infer_messages import FINAL, parse_infer
from serving.api.message_template import MessageTemplate, Sample
from serving.api.packed import pack_message
from serving.contract import IMAGE_BYTES
from serving.errors import RequestError
from serving.inference.classifier import LOGITS, PROBABILITIES, WHOLE
from serving.pb.inference import open_inference_pb2 as pb
from serving.recognition.call_group import Encode, Rows, SingleRequest, Verdicts
from serving.recognition.reading import ReadOptions
from serving.repository.catalog import Loaded

# Outputs of the model, with their columns in a row.
_COLUMNS = {"logits": LOGITS, "probabilities": PROBABILITIES, "whole": slice(WHOLE, WHOLE + 1)}

# The tag and the length that precede 784 bytes in raw_input_contents, the last field of a request.
_RAW_IMAGE = pb.ModelInferRequest(raw_input_contents=[bytes(IMAGE_BYTES)]).SerializeToString()[:-IMAGE_BYTES]

# The parameter that says that an answer of a stream is the only one to its request.
_FINAL = pb.ModelInferResponse(parameters={FINAL: pb.InferParameter(bool_param=True)}).SerializeToString()

# The heads of requests that are remembered: those of a client are mostly the same. Longer heads are parsed each time.
_MAX_HEADS = 256
_MAX_HEAD_BYTES = 1024


@dataclass(frozen=True)
class InferForm:
    """A raw answer of ModelInfer.

    Attributes:
        outputs: names of the outputs, in order; none for all outputs of the model.
    """

    outputs: tuple[str, ...]
    audits: bool = False  # the protocol has no place for the mark

    @property
    def decides(self) -> bool:
        """True if the answer has decisions."""
        return "decisions" in self.outputs

    def encoder(self, loaded: Loaded, threshold: Threshold | None, id_length: int) -> Encode:
        """Prepares the ModelInferResponse of a version."""
        response = pb.ModelInferResponse
        shared = response(model_name=loaded.name, model_version=loaded.version)
        names = self.outputs or tuple(tensors.OUTPUTS[loaded.model.metadata.contract])
        samples: dict[str, tensors.Values] = {
            name: np.ones((1, columns.stop - columns.start), np.float32) for name, columns in _COLUMNS.items()
        }
        samples["decisions"] = np.ones(1, np.uint8)
        tensors.add_outputs(shared, ((name, samples[name]) for name in names), raw=True)
        del shared.raw_output_contents[:]
        varying: dict[str, tuple[pb.ModelInferResponse, Sample]] = {
            name: (response(raw_output_contents=[samples[name].tobytes()]), samples[name]) for name in names
        }
        if self.decides:
            identified, captured = response(), response()
            identified.parameters["recognition_id"].string_param = "x" * id_length
            captured.parameters["captured"].bool_param = True
            varying["recognition_id"] = (identified, np.full(id_length, ord("x"), np.uint8))
            varying["captured"] = (captured, np.uint8(1))
            if threshold:
                shared.parameters["threshold"].double_param = threshold.confidence
                shared.parameters["target_error_rate"].double_param = threshold.target_error_rate
        template = MessageTemplate(shared, varying)
        columns = [(name, _COLUMNS[name]) for name in names if name in _COLUMNS]

        def encode(rows: Rows, verdicts: Verdicts) -> list[bytes]:
            values: dict[str, Any] = {name: rows[:, np.newaxis, which] for name, which in columns}
            if self.decides:
                values["decisions"] = verdicts.decisions[:, np.newaxis]
                values["recognition_id"] = verdicts.recognition_ids
                values["captured"] = verdicts.captured
            return template.fill(len(rows), values)

        return encode


class _Head(NamedTuple):
    """What precedes the image in a request."""

    options: ReadOptions
    form: InferForm
    tail: bytes


class InferParser:
    """Parses requests of ModelInfer with one raw image. The bytes before the image are parsed once and remembered."""

    def __init__(self) -> None:
        self._heads: dict[bytes, _Head | None] = {}

    def parse(self, encoded: bytes) -> SingleRequest | None:
        """Parses a ModelInferRequest; returns None for one without one raw image, or with a timeout, and for other bytes."""
        if encoded[-IMAGE_BYTES - len(_RAW_IMAGE) : -IMAGE_BYTES] != _RAW_IMAGE:
            return None
        before = encoded[: -IMAGE_BYTES - len(_RAW_IMAGE)]
        if len(before) > _MAX_HEAD_BYTES:  # a long message is parsed once, by the other way
            return None
        try:
            head = self._heads[before]
        except KeyError:
            if len(self._heads) == _MAX_HEADS:
                self._heads.clear()
            head = self._heads[before] = _parse_head(before)
        return SingleRequest(encoded[-IMAGE_BYTES:], head.options, head.form, head.tail) if head else None


def join_in_stream(answer: bytes, tail: bytes) -> bytes:
    """Returns a ModelStreamInferResponse with the parts of an encoded ModelInferResponse.

    They are one field: a parser may take the last of several fields of the same message for the whole, as protobuf.js does.
    """
    return pack_message(pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER, answer + tail + _FINAL)


def _parse_head(before: bytes) -> _Head | None:
    """Parses what precedes the image; returns None where the request can't be answered by the run.

    A field follows the fields before it only if these are a message by themselves: otherwise the bytes that look like the
    image are a part of another field.
    """
    try:
        message = pb.ModelInferRequest.FromString(before)
        request = parse_infer(before + _RAW_IMAGE + bytes(IMAGE_BYTES))
    except (DecodeError, RequestError):
        return None
    if message.raw_input_contents or request.images.crops or request.options.timeout_seconds:
        return None
    tail = pb.ModelInferResponse(id=request.id).SerializeToString()
    return _Head(request.options, InferForm(tuple(request.outputs)), tail)
