"""The client: one method per RPC, each with a deadline."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from ..pb.digits.v1 import digit_service_pb2 as pb
from . import answers
from .answers import Field, Recognition, Refusal
from .arguments import check_address, check_credentials, check_options, check_priority, check_timeout, check_token
from .channel import Connections
from .failed_calls import refine
from .requests import EMPTY_CROP, Image, Images, image_request, is_empty, put_images
from .truths import Truth, truth_request


class DigitClient:
    """A connection to the service. Thread-safe. Close it, or use it in a `with` statement.

    A call on a closed client raises ValueError.

    Every call has a deadline. A failed call raises grpc.RpcError: `error.code()` is one of the status codes that
    protos/README.md lists, and `error.details()` is the reason. A call that the server refused raises its subclass
    ResourceExhausted, whose `retry_after` is the number of seconds to wait.

    With several servers, the client connects to each and calls them in turn (round-robin). It skips a server that is down
    until the server is back. After UNAVAILABLE, it retries `recognize`, `recognize_batch` and `read_field` on the next
    server, up to four times. It watches no server's health, because each server accepts few watches.

    gRPC resolves a name again only after a connection has ended. To let clients find new servers, limit the age of
    connections: `digits serve --max-connection-age-seconds 300`.
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
            address: host:port, or any name that gRPC resolves: `dns:///digits-headless.digits:8001` for all addresses of a
                name, `ipv4:10.0.0.1:8001,10.0.0.2:8001` for a list.
            timeout_seconds: deadline of each call, including its retries; above 0.
            credentials: for TLS, from `channel_credentials`. The client polls the files behind them, and new connections use
                renewed certificates. None connects without TLS.
            token: identifies this client to the server; whitespace around it is removed. Without TLS, anyone on the
                network path can read it. Then use it only on one machine or in an encrypted network.

        Raises:
            TypeError: an argument has another type.
            ValueError: the address is empty, the timeout is not a finite number above 0, or the token is not one line of
                printable ASCII.
        """
        self._timeout = check_timeout(timeout_seconds)
        token = check_token(token)
        self._address = check_address(address)
        self._connections = Connections(self._address, check_credentials(credentials))
        # gRPC refuses to send grpc.CallCredentials without TLS, so the token goes into the metadata of each call.
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)

    def recognize(
        self, image: Image, *, model: str = "", key: str = "", target_error_rate: float = 0.0, priority: str = "live"
    ) -> Recognition:
        """Recognizes one image.

        Args:
            image: (28, 28) uint8, 0 paper, 255 ink; or a crop, the bytes of a PNG or JPEG file of any size.
            model: name of the model; "" selects the server's default model.
            key: during a canary rollout, calls with the same key go to the same model version.
            target_error_rate: largest acceptable share of wrong answers among accepted ones; 0 selects the server's target.
            priority: "live", or "batch" where nobody waits for the answer: the server reads live images first.

        Raises:
            TypeError: `image` is neither an array nor bytes-like, or an option has another type.
            ValueError: the array has another shape or dtype, or the crop is empty.
            grpc.RpcError: the call failed.
        """
        check_options(model=model, key=key, target_error_rate=target_error_rate)
        request = image_request(image, model, key, target_error_rate, check_priority(priority))
        if is_empty(request):
            raise ValueError(EMPTY_CROP)
        return answers.recognition(self._call("Recognize", request))

    def recognize_batch(
        self, images: Images, *, model: str = "", key: str = "", target_error_rate: float = 0.0, priority: str = "live"
    ) -> list[Recognition]:
        """Recognizes n images in one call.

        A crop that the server can't decode, or an empty one, gets the decision REJECT_INVALID_IMAGE. The server answers
        the others.

        Args:
            images: (n, 28, 28) uint8, 0 paper, 255 ink; or n crops, the bytes of PNG or JPEG files.
            model: as for `recognize`.
            key: as for `recognize`.
            target_error_rate: as for `recognize`.
            priority: as for `recognize`.

        Raises:
            TypeError: `images` is neither an array nor an iterable of bytes-like crops, or an option has another type.
            ValueError: the array has another shape or dtype, or there are no images.
            grpc.RpcError: the call failed.
        """
        check_options(model=model, key=key, target_error_rate=target_error_rate)
        request = pb.RecognizeBatchRequest(
            model=model, key=key, target_error_rate=target_error_rate, priority=check_priority(priority)
        )
        put_images(images, request)
        return answers.recognitions(self._call("RecognizeBatch", request))

    def read_field(
        self,
        images: Images,
        *,
        lexicon: str = "",
        model: str = "",
        key: str = "",
        target_error_rate: float = 0.0,
        priority: str = "live",
    ) -> Field:
        """Reads one field from the images of its digits.

        Args:
            images: 1 to 18 images from left to right, as for `recognize_batch`.
            lexicon: name of a lexicon of the server; the answer is then the most probable code in it.
            model: as for `recognize`.
            key: as for `recognize`.
            target_error_rate: largest acceptable share of wrong fields among accepted ones; 0 selects the server's target.
            priority: as for `recognize`.

        Raises:
            TypeError: `images` is neither an array nor an iterable of bytes-like crops, or an option has another type.
            ValueError: the array has another shape or dtype, or there are no images.
            grpc.RpcError: the call failed.
        """
        check_options(model=model, key=key, lexicon=lexicon, target_error_rate=target_error_rate)
        request = pb.ReadFieldRequest(
            model=model,
            key=key,
            lexicon=lexicon,
            target_error_rate=target_error_rate,
            priority=check_priority(priority),
        )
        put_images(images, request)
        return answers.field(self._call("ReadField", request))

    def report_truth(self, truths: Iterable[Truth], source: str) -> int:
        """Reports the truth about earlier answers.

        Args:
            truths: tuples `(answer, value)`. The answer is a Recognition or a Field, or its stored `recognition_id`. The
                value is the true digit, or all digits of the field as a string. NO_DIGIT, "x", stands for an image that does
                not show one whole digit: "x", or "90x10" for a field. Answers of a batch share their id: report them as
                `(recognition_id, index, value)`. The index is `Recognition.place`, 0 if left out.
            source: "keying", "audit" or "replay". An audit is only valid for answers with `audit` set.

        Returns:
            Number of truths that the server had not counted before.

        Raises:
            TypeError: an item is not such a tuple.
            ValueError: the source is unknown, or an index is out of range.
            grpc.RpcError: the call failed. For an id that the server never gave, the code is INVALID_ARGUMENT.
        """
        return int(self._call("ReportTruth", truth_request(truths, source)).counted)

    def recognize_stream(
        self,
        images: Iterable[Image],
        *,
        model: str = "",
        key: str = "",
        target_error_rate: float = 0.0,
        priority: str = "live",
    ) -> Iterator[tuple[int, Recognition | Refusal]]:
        """Recognizes images as they arrive, on one stream with many images in flight.

        Args:
            images: images or crops, each as for `recognize`. A thread of gRPC iterates over them. Backpressure: it pauses
                while the answers are not read.
            model: as for `recognize`.
            key: as for `recognize`.
            target_error_rate: as for `recognize`.
            priority: as for `recognize`.

        Yields:
            The index of an image in `images`, from 0, with its answer or its error, in the order in which they become ready.
            An image that is not answered within the client's timeout gets the error DEADLINE_EXCEEDED. An empty crop gets
            the error INVALID_ARGUMENT.

        Raises:
            TypeError: an image is neither an array nor bytes-like. The images before it are answered first.
            ValueError: an array has another shape or dtype. The images before it are answered first.
            grpc.RpcError: the stream ended before all images were answered.
        """
        check_options(model=model, key=key, target_error_rate=target_error_rate)
        urgency = check_priority(priority)
        milliseconds = max(1, round(self._timeout * 1000))
        failure: Exception | None = None
        # The server's error for an empty crop can only state that the image is missing. The request is still sent, so that
        # its error arrives in turn and backpressure holds.
        empty: set[int] = set()

        def requests() -> Iterator[pb.RecognizeStreamRequest]:
            nonlocal failure
            try:
                for index, image in enumerate(images):
                    request = image_request(image, model, key, target_error_rate, urgency)
                    if is_empty(request):
                        empty.add(index)
                    yield pb.RecognizeStreamRequest(id=index, request=request, timeout_ms=milliseconds)
            except Exception as error:  # gRPC would cancel the call and hide the reason
                failure = error

        with self._connections.stub() as stub:
            stream = stub.RecognizeStream(requests(), metadata=self._metadata)
            try:
                for answer in stream:
                    if answer.id in empty:
                        empty.remove(answer.id)
                        yield answer.id, Refusal(grpc.StatusCode.INVALID_ARGUMENT, EMPTY_CROP)
                    else:
                        yield answer.id, answers.streamed(answer)
            except grpc.RpcError as error:
                raise refine(error, self._address) from None
            finally:
                stream.cancel()
        if failure:
            raise failure

    def close(self) -> None:
        """Closes the connection. Calls in flight end with CANCELLED."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, request: Any) -> Any:
        with self._connections.stub() as stub:
            try:
                return getattr(stub, method)(request, timeout=self._timeout, metadata=self._metadata)
            except grpc.RpcError as error:
                raise refine(error, self._address) from None
