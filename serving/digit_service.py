"""digits.v1.DigitService: from decoded requests to decoded answers."""

import numpy as np
from numpy.typing import NDArray

from serving.batcher import Batcher
from serving.contract import IMAGE_BYTES
from serving.errors import InvalidRequest
from serving.metrics import Metrics
from serving.pb.digits.v1 import digit_service_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["DigitService"].full_name


class DigitService:
    """The native API, as protos/digits/v1/digit_service.proto states it."""

    def __init__(self, batcher: Batcher, metrics: Metrics, model_version: str, max_images_per_request: int):
        self._batcher = batcher
        self._metrics = metrics
        self._model_version = model_version
        self._max_images_per_request = max_images_per_request

    async def recognize(self, request: pb.RecognizeRequest, deadline: float) -> pb.RecognizeResponse:
        """Reads one image. Raises RequestError when it can't; `deadline` is on the clock of time.monotonic."""
        image = request.image  # protobuf copies the bytes each time it is asked for them
        if len(image) != IMAGE_BYTES:
            raise InvalidRequest(f"image is {len(image)} bytes, expected {IMAGE_BYTES}: 28 rows of 28 pixels")
        probabilities, digits, confidences = await self._read(image, deadline)
        return pb.RecognizeResponse(
            digit=digits.item(),
            confidence=confidences.item(),
            probabilities=probabilities[0].tolist(),
            model_version=self._model_version,
        )

    async def recognize_batch(self, request: pb.RecognizeBatchRequest, deadline: float) -> pb.RecognizeBatchResponse:
        """Reads many images. Raises RequestError when it can't; `deadline` is on the clock of time.monotonic."""
        images = request.images
        del request  # the message holds a second copy of the images, which would wait with them
        count, rest = divmod(len(images), IMAGE_BYTES)
        if rest or not count:
            raise InvalidRequest(
                f"images is {len(images)} bytes, expected a multiple of {IMAGE_BYTES} (28 rows of 28 pixels an "
                "image), and at least one image"
            )
        if count > self._max_images_per_request:
            raise InvalidRequest(f"images holds {count} images, this server takes {self._max_images_per_request} a call")
        probabilities, digits, confidences = await self._read(images, deadline)
        return pb.RecognizeBatchResponse(
            digits=digits.tolist(),
            confidences=confidences.tolist(),
            probabilities=probabilities.ravel().tolist(),
            model_version=self._model_version,
        )

    async def _read(
        self, pixels: bytes, deadline: float
    ) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.float32]]:
        """Probabilities (n, 10), digits (n,) and confidences (n,) of n images, counted."""
        probabilities = await self._batcher.submit(pixels, deadline)
        digits, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
        self._metrics.count_predictions(digits, confidences)
        return probabilities, digits, confidences
