"""digits.v1.DigitService: from encoded requests to encoded answers."""

from collections.abc import Awaitable
from typing import Any, NamedTuple, cast

from serving.answers.lexicon import LONGEST
from serving.api.bounds import require_short_texts
from serving.api.digits_by_run import join_in_stream, parse_single_image, parse_single_image_in_stream
from serving.api.packed import pack_floats, pack_small
from serving.api.rpc import ByRun, Method
from serving.api.wire import parse_message
from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import InvalidRequest, RequestError, retry_after_milliseconds
from serving.feedback.truth import Truth, TruthCounter
from serving.inference.classifier import NOT_ONE_DIGIT
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.recognition.reading import DigitAnswers, FieldAnswer, Images, ReadOptions, Verdict
from serving.recognition.recognizer import Recognizer

_SOURCES = {number: name.removeprefix("TRUTH_SOURCE_").lower() for name, number in pb.TruthSource.items() if number}
_PRIORITIES = frozenset(pb.Priority.values())

# Size of the largest report: for each truth, what it takes with the id of one image and a long model name.
_TRUTH_BYTES = 512
_LEAST_TRUTH_BYTES = 1 << 20

# Each truth becomes Python objects of its own, and two bytes may be one: a report costs more by the byte than images.
_LONG_TRUTH_BYTES = 1 << 14

NAME = pb.DESCRIPTOR.services_by_name["DigitService"].full_name


class ImageRequest(NamedTuple):
    """A request to recognize images.

    Attributes:
        images: the images, or crops.
        options: the options.
        stream_id: id of the request in its stream; 0 outside a stream.
    """

    images: Images
    options: ReadOptions
    stream_id: int = 0


class StreamAnswer(NamedTuple):
    """The answer to one request of a stream."""

    stream_id: int
    answers: DigitAnswers


class DigitService:
    """The native API, as protos/digits/v1/digit_service.proto defines it. Every method may raise RequestError."""

    def __init__(self, recognizer: Recognizer, truths: TruthCounter, max_truths_per_request: int):
        self._recognizer = recognizer
        self._truths = truths
        self._max_truths_per_request = max_truths_per_request

    def methods(self) -> list[Method[Any, Any]]:
        """Lists the methods that callers may call."""
        return [
            _method(
                "Recognize",
                parse_image,
                self.recognize,
                encode_digit,
                "recognize",
                by_run=ByRun(parse_single_image, self._recognizer.enter),
            ),
            _method("RecognizeBatch", parse_batch, self.recognize, encode_digits, "recognize"),
            _method("ReadField", parse_field, self.read_field, encode_field, "recognize"),
            _method(
                "ReportTruth",
                self.parse_truths,
                self.report_truths,
                encode_counted,
                "truth",
                max_bytes=max(_LEAST_TRUTH_BYTES, self._max_truths_per_request * _TRUTH_BYTES),
                long_bytes=_LONG_TRUTH_BYTES,
            ),
            _method(
                "RecognizeStream",
                parse_stream_request,
                self.recognize_in_stream,
                encode_stream_answer,
                "recognize",
                refuse=refuse_in_stream,
                by_run=ByRun(parse_single_image_in_stream, self._recognizer.enter, join_in_stream),
            ),
        ]

    def recognize(self, request: ImageRequest, call: Call) -> Awaitable[DigitAnswers]:
        """Recognizes one image, or many independent ones."""
        return self._recognizer.recognize(request.images, request.options, call)

    async def recognize_in_stream(self, request: ImageRequest, call: Call) -> StreamAnswer:
        """Recognizes one image of a stream."""
        return StreamAnswer(request.stream_id, await self._recognizer.recognize(request.images, request.options, call))

    def read_field(self, request: ImageRequest, call: Call) -> Awaitable[FieldAnswer]:
        """Recognizes the digits of one field."""
        return self._recognizer.read_field(request.images, request.options, call)

    def report_truths(self, truths: list[Truth], call: Call) -> Awaitable[int]:
        """Counts truths; returns the number that were new."""
        return self._truths.report(truths)

    def parse_truths(self, encoded: bytes) -> list[Truth]:
        """Parses a ReportTruthRequest."""
        request = parse_message(pb.ReportTruthRequest, encoded)
        self._require_count(len(request.truths))  # first: to count the values takes longer than to build the message
        values = sum(len(reported.values) for reported in request.truths)
        self._require_count(max(values, len(request.truths)) if values else 0)
        truths = []
        for index, reported in enumerate(request.truths):
            if reported.source not in _SOURCES:
                raise InvalidRequest(f"truth {index}: its source is {reported.source}, expected one of TruthSource")
            truths.append(Truth(reported.recognition_id, _SOURCES[reported.source], dict(reported.values)))
        return truths

    def _require_count(self, count: int) -> None:
        if not 0 < count <= self._max_truths_per_request:
            raise InvalidRequest(f"there are {count} truths, expected 1 to {self._max_truths_per_request}")


def parse_image(encoded: bytes) -> ImageRequest:
    """Parses a RecognizeRequest."""
    return _image_request(parse_message(pb.RecognizeRequest, encoded))


def parse_batch(encoded: bytes) -> ImageRequest:
    """Parses a RecognizeBatchRequest."""
    request = parse_message(pb.RecognizeBatchRequest, encoded)
    require_short_texts(request)
    rate, batch = request.target_error_rate, _is_batch(request.priority)
    options = ReadOptions(request.model, "", request.key, rate, partial=True, batch=batch)
    return ImageRequest(Images(request.images, [*request.crops]), options)


def parse_field(encoded: bytes) -> ImageRequest:
    """Parses a ReadFieldRequest."""
    request = parse_message(pb.ReadFieldRequest, encoded)
    require_short_texts(request)
    images = Images(request.images, [*request.crops])
    length = len(images.crops) or len(images.pixels) // IMAGE_BYTES
    if length > LONGEST:
        raise InvalidRequest(f"the field has {length} digits, expected {LONGEST} at most")
    lexicon, rate, batch = request.lexicon, request.target_error_rate, _is_batch(request.priority)
    options = ReadOptions(request.model, "", request.key, rate, partial=True, lexicon=lexicon, batch=batch)
    return ImageRequest(images, options)


def parse_stream_request(encoded: bytes) -> ImageRequest:
    """Parses a RecognizeStreamRequest."""
    request = parse_message(pb.RecognizeStreamRequest, encoded)
    return _image_request(request.request, request.timeout_ms / 1000, request.id)


def _image_request(request: pb.RecognizeRequest, timeout_seconds: float = 0.0, stream_id: int = 0) -> ImageRequest:
    require_short_texts(request)
    image, crop = request.image, request.crop  # each access to a protobuf field copies its bytes
    if len(image) != IMAGE_BYTES and not crop:
        raise InvalidRequest(f"image is {len(image)} bytes, expected {IMAGE_BYTES}: 28 rows of 28 pixels")
    rate, batch = request.target_error_rate, _is_batch(request.priority)
    options = ReadOptions(request.model, "", request.key, rate, timeout_seconds, batch=batch)
    return ImageRequest(Images(image, [crop] if crop else []), options, stream_id)


def _is_batch(priority: int) -> bool:
    """Returns True for priority batch, and False for live. Raises InvalidRequest for none of the two."""
    if priority not in _PRIORITIES:
        known = ", ".join(f"{number} ({name})" for name, number in pb.Priority.items())
        raise InvalidRequest(f"priority is {priority}, expected one of {known}")
    return priority == pb.PRIORITY_BATCH


def encode_digit(answers: DigitAnswers) -> bytes:
    """Encodes a RecognizeResponse."""
    return _digit_response(answers).SerializeToString()


def encode_digits(answers: DigitAnswers) -> bytes:
    """Encodes a RecognizeBatchResponse."""
    reading, verdict = answers
    response = pb.RecognizeBatchResponse
    parts = (
        pack_small(response.DIGITS_FIELD_NUMBER, reading.digits),
        pack_floats(response.CONFIDENCES_FIELD_NUMBER, reading.confidences),
        pack_floats(response.PROBABILITIES_FIELD_NUMBER, reading.probabilities),
        pack_small(response.DECISIONS_FIELD_NUMBER, verdict.decisions),
        pack_floats(response.WHOLE_FIELD_NUMBER, reading.whole),
        response(
            model_version=reading.loaded.version,
            troubles=reading.errors,
            recognition_id=verdict.recognition_id,
            audits=verdict.audited.nonzero()[0].tolist(),
            captured=verdict.captured,
            **_threshold(verdict),
        ).SerializeToString(),
    )
    return b"".join(parts)


def encode_field(answer: FieldAnswer) -> bytes:
    """Encodes a ReadFieldResponse."""
    reading, verdict = answer.reading, answer.verdict
    return pb.ReadFieldResponse(
        value=answer.value,
        confidence=answer.confidence,
        digits=[
            pb.DigitCandidates(digits=digits, probabilities=probabilities, whole=whole, no_digit=shows == NOT_ONE_DIGIT)
            for digits, probabilities, whole, shows in zip(
                answer.candidates.tolist(),
                answer.probabilities.tolist(),
                reading.whole.tolist(),
                reading.shows.tolist(),
                strict=True,
            )
        ],
        model_version=reading.loaded.version,
        decision=cast(pb.Decision, verdict.decisions.item()),
        troubles=reading.errors,
        recognition_id=verdict.recognition_id,
        audit=verdict.audited.item(),
        captured=verdict.captured,
        **_threshold(verdict),
    ).SerializeToString()


def encode_stream_answer(answer: StreamAnswer) -> bytes:
    """Encodes the answer to one request of a stream as a RecognizeStreamResponse."""
    return pb.RecognizeStreamResponse(id=answer.stream_id, answer=_digit_response(answer.answers)).SerializeToString()


def refuse_in_stream(encoded: bytes, error: RequestError) -> bytes:
    """Encodes the error of one request of a stream as a RecognizeStreamResponse."""
    stream_id = pb.RecognizeStreamRequest.FromString(encoded).id
    reason = pb.StreamError(code=error.code, message=str(error), retry_after_ms=retry_after_milliseconds(error))
    return pb.RecognizeStreamResponse(id=stream_id, error=reason).SerializeToString()


def encode_counted(counted: int) -> bytes:
    """Encodes a ReportTruthResponse."""
    return pb.ReportTruthResponse(counted=counted).SerializeToString()


def _method(name: str, *parts: Any, **options: Any) -> Method[Any, Any]:
    """Describes a method of the service; the descriptor has the name of its request."""
    request = pb.DESCRIPTOR.services_by_name["DigitService"].methods_by_name[name].input_type.full_name
    return Method(NAME, name, request, *parts, **options)


def _digit_response(answers: DigitAnswers) -> pb.RecognizeResponse:
    reading, verdict = answers
    return pb.RecognizeResponse(
        digit=reading.digits.item(),
        confidence=reading.confidences.item(),
        probabilities=reading.probabilities[0].tolist(),
        model_version=reading.loaded.version,
        decision=cast(pb.Decision, verdict.decisions.item()),
        recognition_id=verdict.recognition_id,
        audit=verdict.audited.item(),
        captured=verdict.captured,
        whole=reading.whole.item(),
        **_threshold(verdict),
    )


def _threshold(verdict: Verdict) -> dict[str, Any]:
    threshold = verdict.threshold
    if threshold is None:
        return {}
    return {"threshold": threshold.confidence, "target_error_rate": threshold.target_error_rate}
