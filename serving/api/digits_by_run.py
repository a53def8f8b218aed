"""Recognize, answered by the run: requests with one framed image, and their answers encoded together."""

from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from serving.answers.decision import Threshold
from serving.api.bounds import LONGEST_TEXT
from serving.api.message_template import MessageTemplate
from serving.api.packed import pack_message
from serving.contract import IMAGE_BYTES
from serving.inference.classifier import CONFIDENCE, DIGIT, PROBABILITIES, WHOLE
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.recognition.call_group import Encode, Rows, SingleRequest, Verdicts
from serving.recognition.reading import ReadOptions
from serving.repository.catalog import Loaded


@dataclass(frozen=True, eq=False)  # there is one, and comparing it by identity is quick
class RecognizeForm:
    """The one kind of answer that Recognize gives."""

    decides: bool = True
    audits: bool = True

    def encoder(self, loaded: Loaded, threshold: Threshold | None, id_length: int) -> Encode:
        """Prepares the RecognizeResponse of a version."""
        response = pb.RecognizeResponse
        shared = response(model_version=loaded.version)
        if threshold:
            shared.threshold, shared.target_error_rate = threshold.confidence, threshold.target_error_rate
        template = MessageTemplate(
            shared,
            {
                "digit": (response(digit=1), np.uint8(1)),
                "confidence": (response(confidence=1.0), np.float32(1)),
                "probabilities": (response(probabilities=[1.0] * 10), np.ones(10, np.float32)),
                "decision": (response(decision=pb.DECISION_ACCEPT), np.uint8(1)),
                "recognition_id": (response(recognition_id="x" * id_length), np.full(id_length, ord("x"), np.uint8)),
                "audit": (response(audit=True), np.uint8(1)),
                "captured": (response(captured=True), np.uint8(1)),
                "whole": (response(whole=1.0), np.float32(1)),
            },
        )

        def encode(rows: Rows, verdicts: Verdicts) -> list[bytes]:
            values = {
                "digit": rows[:, DIGIT],
                "confidence": rows[:, CONFIDENCE],
                "probabilities": rows[:, PROBABILITIES],
                "decision": verdicts.decisions,
                "recognition_id": verdicts.recognition_ids,
                "audit": verdicts.audited,
                "captured": verdicts.captured,
                "whole": rows[:, WHOLE],
            }
            return template.fill(len(rows), values)

        return encode


RECOGNIZE = RecognizeForm()

# Size of a request with one image, at most. A longer one may hold a crop, and is parsed only once, by the other way. No text
# of a shorter one exceeds the bound of texts, so that it need not be checked.
_MAX_BYTES = IMAGE_BYTES + LONGEST_TEXT


def parse_single_image(encoded: bytes) -> SingleRequest | None:
    """Parses a RecognizeRequest; returns None for one with a crop or without a whole image, and for a broken one."""
    if len(encoded) > _MAX_BYTES:
        return None
    try:
        return _single_request(pb.RecognizeRequest.FromString(encoded))
    except DecodeError:
        return None


def parse_single_image_in_stream(encoded: bytes) -> SingleRequest | None:
    """Parses a RecognizeStreamRequest; returns None as `parse_single_image` does."""
    if len(encoded) > _MAX_BYTES:
        return None
    try:
        request = pb.RecognizeStreamRequest.FromString(encoded)
    except DecodeError:
        return None
    single = _single_request(request.request, request.timeout_ms / 1000)
    if single is None:
        return None
    return single._replace(tail=pb.RecognizeStreamResponse(id=request.id).SerializeToString())


def join_in_stream(answer: bytes, stream_id: bytes) -> bytes:
    """Returns a RecognizeStreamResponse with an encoded RecognizeResponse and its encoded id."""
    return stream_id + pack_message(pb.RecognizeStreamResponse.ANSWER_FIELD_NUMBER, answer)


def _single_request(request: pb.RecognizeRequest, timeout_seconds: float = 0.0) -> SingleRequest | None:
    image = request.image
    if len(image) != IMAGE_BYTES or request.crop:
        return None
    options = ReadOptions(request.model, "", request.key, request.target_error_rate, timeout_seconds)
    priority = request.priority
    if priority == pb.PRIORITY_BATCH:
        options = options._replace(batch=True)
    elif priority and priority != pb.PRIORITY_LIVE:
        return None
    return SingleRequest(image, options, RECOGNIZE)
