"""The Python client: arrays in, what they show out."""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.contract import IMAGE_SHAPE
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub


@dataclass(frozen=True, eq=False)
class Recognition:
    """What one image shows.

    Attributes:
        digit: 0 to 9.
        confidence: probability that `digit` is right.
        probabilities: (10,) float32, of each digit.
        model_version: the version of the model that answered.
    """

    digit: int
    confidence: float
    probabilities: NDArray[np.float32]
    model_version: str


class DigitClient:
    """A connection to the service; safe to use from several threads at once. Close it, or use it in a `with`.

    Every call has a deadline, and raises grpc.RpcError when it ends otherwise than with an answer: `error.code()` is one of
    the status codes that protos/digits/v1/digit_service.proto explains, `error.details()` the reason.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        timeout_seconds: float = 5.0,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ):
        """Connects at the first call.

        Args:
            address: host:port.
            timeout_seconds: each call's deadline.
            credentials: for TLS, as from serving.tls.channel_credentials; None connects without.
            token: what the server knows this client by. Without TLS everybody on the way can read it: for the same machine,
                or a network that encrypts by itself.
        """
        # No limit on answers: the server that is asked decides how many images it takes.
        options = [("grpc.max_receive_message_length", -1)]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._stub = DigitServiceStub(self._channel)
        self._timeout = timeout_seconds
        # With each call rather than as grpc.CallCredentials, which gRPC refuses to send without TLS.
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)

    def recognize(self, image: NDArray[np.uint8]) -> Recognition:
        """Reads one image, (28, 28) uint8, 0 paper, 255 ink. Raises ValueError for anything else."""
        image = _require(image, 2)
        answer = self._stub.Recognize(
            pb.RecognizeRequest(image=image.tobytes()), timeout=self._timeout, metadata=self._metadata
        )
        return Recognition(answer.digit, answer.confidence, np.array(answer.probabilities, np.float32), answer.model_version)

    def recognize_batch(self, images: NDArray[np.uint8]) -> list[Recognition]:
        """Reads n images in one call, (n, 28, 28) uint8, 0 paper, 255 ink. Raises ValueError for anything else."""
        images = _require(images, 3)
        answer = self._stub.RecognizeBatch(
            pb.RecognizeBatchRequest(images=images.tobytes()), timeout=self._timeout, metadata=self._metadata
        )
        probabilities = np.array(answer.probabilities, np.float32).reshape(-1, 10)
        return [
            Recognition(digit, confidence, row, answer.model_version)
            for digit, confidence, row in zip(answer.digits, answer.confidences, probabilities, strict=True)
        ]

    def close(self) -> None:
        """Closes the connection; calls in flight end with CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _require(images: NDArray[np.uint8], dimensions: int) -> NDArray[np.uint8]:
    images = np.asarray(images)
    if images.ndim != dimensions or images.shape[-2:] != IMAGE_SHAPE or images.dtype != np.uint8 or not len(images):
        expected = "(28, 28)" if dimensions == 2 else "(n, 28, 28), n at least 1,"
        raise ValueError(f"images have shape {images.shape} and type {images.dtype}, expected {expected} and uint8")
    return images
