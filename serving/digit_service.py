"""digits.v1.DigitService: from decoded requests to decoded answers."""

from typing import Any

from serving.call import Call
from serving.contract import IMAGE_BYTES
from serving.errors import InvalidRequest, RequestError, retry_after_milliseconds
from serving.method import Method
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.recognizer import Recognizer

NAME = pb.DESCRIPTOR.services_by_name["DigitService"].full_name


class DigitService:
    """The native API, as protos/digits/v1/digit_service.proto states it. Every method raises RequestError when it can't."""

    def __init__(self, recognizer: Recognizer):
        self._recognizer = recognizer

    def methods(self) -> list[Method[Any]]:
        """What can be called."""
        return [
            Method("Recognize", pb.RecognizeRequest, self.recognize, "recognize"),
            Method("RecognizeBatch", pb.RecognizeBatchRequest, self.recognize_batch, "recognize"),
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
        image = request.image  # protobuf copies the bytes each time it is asked for them
        if len(image) != IMAGE_BYTES:
            raise InvalidRequest(f"image is {len(image)} bytes, expected {IMAGE_BYTES}: 28 rows of 28 pixels")
        model, key = request.model, request.key
        reading = await self._recognizer.read(image, call, model=model, key=key, timeout_seconds=timeout_seconds)
        return pb.RecognizeResponse(
            digit=reading.digits.item(),
            confidence=reading.confidences.item(),
            probabilities=reading.probabilities[0].tolist(),
            model_version=reading.loaded.version,
        )

    async def recognize_batch(self, request: pb.RecognizeBatchRequest, call: Call) -> pb.RecognizeBatchResponse:
        """Reads many images."""
        images, model, key = request.images, request.model, request.key
        del request  # the message holds a second copy of the images, which would wait with them
        reading = await self._recognizer.read(images, call, model=model, key=key)
        return pb.RecognizeBatchResponse(
            digits=reading.digits.tolist(),
            confidences=reading.confidences.tolist(),
            probabilities=reading.probabilities.ravel().tolist(),
            model_version=reading.loaded.version,
        )

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
