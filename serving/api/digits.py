"""digits.v1.DigitService: from decoded requests to decoded answers."""

from collections.abc import Sequence
from typing import Any, cast

from serving.answers.decision import Threshold
from serving.answers.lexicon import LONGEST
from serving.api.rpc import Method
from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import InvalidRequest, RequestError, retry_after_milliseconds
from serving.feedback.truth import Truth, Truths
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.recognition.policy import Policy
from serving.recognition.recognizer import Recognizer

_SOURCES = {number: name.removeprefix("TRUTH_SOURCE_").lower() for name, number in pb.TruthSource.items() if number}

NAME = pb.DESCRIPTOR.services_by_name["DigitService"].full_name


class DigitService:
    """The native API, as protos/digits/v1/digit_service.proto states it. Every method raises RequestError when it can't."""

    def __init__(self, recognizer: Recognizer, decider: Policy, truths: Truths, max_truths_per_request: int):
        self._recognizer = recognizer
        self._decider = decider
        self._truths = truths
        self._max_truths_per_request = max_truths_per_request

    def methods(self) -> list[Method[Any]]:
        """What can be called."""
        return [
            Method("Recognize", pb.RecognizeRequest, self.recognize, "recognize"),
            Method("RecognizeBatch", pb.RecognizeBatchRequest, self.recognize_batch, "recognize"),
            Method("ReadField", pb.ReadFieldRequest, self.read_field, "recognize"),
            Method("ReportTruth", pb.ReportTruthRequest, self.report_truth, "truth"),
            Method(
                "RecognizeStream",
                pb.RecognizeStreamRequest,
                self.recognize_in_stream,
                "recognize",
                refuse=self.refuse_in_stream,
            ),
        ]

    async def recognize(self, request: pb.RecognizeRequest, call: Call) -> pb.RecognizeResponse:
        """Reads one image."""
        return await self._recognize(request, call)

    async def _recognize(
        self, request: pb.RecognizeRequest, call: Call, timeout_seconds: float = 0.0
    ) -> pb.RecognizeResponse:
        image, crop = request.image, request.crop  # protobuf copies the bytes each time it is asked for them
        if len(image) != IMAGE_BYTES and not crop:
            raise InvalidRequest(f"image is {len(image)} bytes, expected {IMAGE_BYTES}: 28 rows of 28 pixels")
        target = self._decider.target(request.target_error_rate)
        crops = [crop] if crop else []
        model, key = request.model, request.key
        reading = await self._recognizer.read(
            image, call, crops=crops, model=model, key=key, timeout_seconds=timeout_seconds
        )
        decided = await self._decider.digits(reading, target, call.deadline)
        return pb.RecognizeResponse(
            digit=reading.digits[0],
            confidence=reading.confidences[0],
            probabilities=reading.probabilities[0].tolist(),
            model_version=reading.loaded.version,
            decision=cast(pb.Decision, decided.decisions[0]),
            recognition_id=decided.recognition_id,
            audit=decided.audited[0],
            captured=decided.captured,
            **_stated(decided.threshold),
        )

    async def recognize_batch(self, request: pb.RecognizeBatchRequest, call: Call) -> pb.RecognizeBatchResponse:
        """Reads many images."""
        images, crops = request.images, request.crops
        model, key, target = request.model, request.key, self._decider.target(request.target_error_rate)
        del request  # the message holds a second copy of the images, which would wait with them
        reading = await self._recognizer.read(images, call, crops=crops, each_by_itself=True, model=model, key=key)
        decided = await self._decider.digits(reading, target, call.deadline)
        return pb.RecognizeBatchResponse(
            digits=reading.digits,
            confidences=reading.confidences,
            probabilities=reading.probabilities.ravel().tolist(),
            model_version=reading.loaded.version,
            decisions=cast(Sequence[pb.Decision], decided.decisions),
            troubles=reading.troubles,
            recognition_id=decided.recognition_id,
            audits=[place for place, audited in enumerate(decided.audited) if audited],
            captured=decided.captured,
            **_stated(decided.threshold),
        )

    async def read_field(self, request: pb.ReadFieldRequest, call: Call) -> pb.ReadFieldResponse:
        """Reads the digits of one field."""
        images, crops, model, key = request.images, request.crops, request.model, request.key
        length = len(crops) or len(images) // IMAGE_BYTES
        if length > LONGEST:
            raise InvalidRequest(f"the field has {length} digits, expected {LONGEST} at most")
        target = self._decider.target(request.target_error_rate, of_field=True)
        lexicon = self._decider.lexicon(request.lexicon)
        reading = await self._recognizer.read(images, call, crops=crops, each_by_itself=True, model=model, key=key)
        field = await self._decider.field(reading, target, call.deadline, lexicon)
        return pb.ReadFieldResponse(
            value=field.value,
            confidence=field.confidence,
            digits=[
                pb.DigitCandidates(digits=digits, probabilities=probabilities)
                for digits, probabilities in zip(field.candidates.tolist(), field.probabilities.tolist(), strict=True)
            ],
            model_version=reading.loaded.version,
            decision=cast(pb.Decision, int(field.decision)),
            troubles=reading.troubles,
            recognition_id=field.recognition_id,
            audit=field.audited,
            captured=field.captured,
            **_stated(field.threshold),
        )

    async def report_truth(self, request: pb.ReportTruthRequest, call: Call) -> pb.ReportTruthResponse:
        """Counts what was really there."""
        count = sum(len(said.values) for said in request.truths)
        if not 0 < count <= self._max_truths_per_request:
            raise InvalidRequest(f"there are {count} truths, expected 1 to {self._max_truths_per_request}")
        truths = []
        for number, said in enumerate(request.truths):
            if said.source not in _SOURCES:
                raise InvalidRequest(f"truth {number}: its source is {said.source}, expected one of TruthSource")
            truths.append(Truth(said.recognition_id, _SOURCES[said.source], dict(said.values)))
        return pb.ReportTruthResponse(counted=await self._truths.report(truths))

    async def recognize_in_stream(self, request: pb.RecognizeStreamRequest, call: Call) -> pb.RecognizeStreamResponse:
        """Reads one image of a stream."""
        answer = await self._recognize(request.request, call, request.timeout_ms / 1000)
        return pb.RecognizeStreamResponse(id=request.id, answer=answer)

    def refuse_in_stream(
        self, request: pb.RecognizeStreamRequest, error: RequestError, code: int
    ) -> pb.RecognizeStreamResponse:
        """What is answered for an image of a stream that is not read, with a gRPC status code; the stream goes on."""
        retry_after_ms = retry_after_milliseconds(error)
        reason = pb.StreamError(code=code, message=str(error), retry_after_ms=retry_after_ms)
        return pb.RecognizeStreamResponse(id=request.id, error=reason)


def _stated(threshold: Threshold | None) -> dict[str, float]:
    """By what was decided, as answers say it."""
    return {"threshold": threshold.confidence, "target_error_rate": threshold.target_error_rate} if threshold else {}
