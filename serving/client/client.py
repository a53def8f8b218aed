"""The Python client: arrays in, what they show out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Decision
from serving.contract import IMAGE_SHAPE
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub

# Each call goes to the next address of the service that answers; gRPC's own choice would be one address for all calls.
BALANCED: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}

# What may be read twice is tried again where a server is not there, or says that it is leaving. Nothing else is: truth would
# be counted twice, and a server with too much to do, which says RESOURCE_EXHAUSTED, would be given more.
# Source: gRFC A6, client retries.
_READS = ("Recognize", "RecognizeBatch", "ReadField")
_SERVICE_CONFIG = {
    **BALANCED,
    "methodConfig": [
        {
            "name": [
                {"service": pb.DESCRIPTOR.services_by_name["DigitService"].full_name, "method": name} for name in _READS
            ],
            "retryPolicy": {
                "maxAttempts": 5,  # gRPC allows no more; with these pauses they take up to a second
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # Where hundreds have failed and hardly any been answered, the service is away, and calls are tried once.
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
}

_NEVER_CAPTURED = (Decision.ACCEPT, Decision.REJECT_INVALID_IMAGE)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, eq=False)
class Recognition:
    """What one image shows.

    Attributes:
        digit: 0 to 9.
        confidence: probability that `digit` is right.
        probabilities: (10,) float32, of each digit.
        model_version: the version of the model that answered.
        decision: whether to accept it, or why not.
        threshold: the least confidence that is accepted; None where the model has no certified one for what was asked.
        target_error_rate: the share of wrong answers among those accepted that it is certified for; None likewise.
        trouble: why the crop can't be read; "" where it can.
        recognition_id: by which, and `place`, truth about it is reported.
        place: in the batch that it was read with.
        audit: whether somebody is to look at the image although it is accepted.
        captured: whether the image, rejected or marked for audit, was kept to learn from, and is on a disk.
    """

    digit: int
    confidence: float
    probabilities: NDArray[np.float32]
    model_version: str
    decision: Decision
    threshold: float | None
    target_error_rate: float | None
    trouble: str = ""
    recognition_id: str = ""
    place: int = 0
    audit: bool = False
    captured: bool = False


@dataclass(frozen=True, eq=False)
class Field:
    """What a field of n digits says.

    Attributes:
        value: its digits.
        confidence: probability that all of them are right.
        decision: whether to accept it, or why not.
        candidates: (n, 3), the most probable digits of each image, the most probable first.
        probabilities: (n, 3) float32, of each.
        model_version: the version of the model that answered.
        threshold: the least confidence that is accepted; None where the model has no certified one for what was asked.
        target_error_rate: the share of wrong fields among those accepted that it is certified for; None likewise.
        troubles: why crops can't be read, by their place.
        recognition_id: by which truth about it is reported.
        audit: whether somebody is to look at it although it is accepted.
        captured: whether its images, rejected or marked for audit, were kept to learn from, and are on a disk.
    """

    value: str
    confidence: float
    decision: Decision
    candidates: NDArray[np.intp]
    probabilities: NDArray[np.float32]
    model_version: str
    threshold: float | None
    target_error_rate: float | None
    troubles: dict[int, str]
    recognition_id: str
    audit: bool
    captured: bool
    place: int = 0


@dataclass(frozen=True)
class Refusal:
    """Why one image of a stream was not read.

    Attributes:
        code: the status code that a call of its own would have ended with.
        reason: in words.
    """

    code: grpc.StatusCode
    reason: str


class DigitClient:
    """A connection to the service; safe to use from several threads at once. Close it, or use it in a `with`.

    Every call has a deadline, and raises grpc.RpcError when it ends otherwise than with an answer: `error.code()` is one of
    the status codes that protos/digits/v1/digit_service.proto explains, `error.details()` the reason.

    Where the address is that of several servers, there is a connection to each, and they are called in turn. One that is
    gone is left out until it is back. `recognize`, `recognize_batch` and `read_field` are tried again where they end with
    UNAVAILABLE, on the next server, up to four times. No server is asked for its health, which takes one of its few watches.

    A name is asked for its addresses again when a connection has ended. So clients find servers that are new only where
    connections end now and then: `digits serve --max-connection-age-seconds 300`.
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
            address: host:port, or another name that gRPC knows for one server or several: `dns:///digits-headless.digits:8001`
                for all addresses of a name, `ipv4:10.0.0.1:8001,10.0.0.2:8001` for these.
            timeout_seconds: each call's deadline, all its tries together.
            credentials: for TLS, as from serving.security.tls.channel_credentials; None connects without.
            token: what the server knows this client by. Without TLS everybody on the way can read it: for the same machine,
                or a network that encrypts by itself.
        """
        # No limit on answers: the server that is asked decides how many images it takes.
        # And each client has connections of its own, where gRPC would share them: connections are what workers share out.
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            # A rollout may replace all servers within half a minute, for which gRPC would not ask for addresses again.
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 5000),  # two minutes otherwise, for a server that was away for long
            # A machine that is gone says nothing: without this, its share of the calls would fail for a quarter of an hour.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.ping_timeout_ms", 10_000),  # a minute otherwise, and the longer of the two is what counts
        ]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._stub = DigitServiceStub(self._channel)
        self._timeout = timeout_seconds
        # With each call rather than as grpc.CallCredentials, which gRPC refuses to send without TLS.
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)

    def recognize(
        self, image: NDArray[np.uint8] | bytes, *, model: str = "", key: str = "", target_error_rate: float = 0.0
    ) -> Recognition:
        """Reads one image: (28, 28) uint8, 0 paper, 255 ink; or a crop, the content of a PNG or JPEG file of any size.

        Here and below, `model` is the name of the model that is to read, the server's default one when empty; while a
        canary is tried, what has the same `key` is read by the same version; and `target_error_rate` is the share of wrong
        answers to bear among those accepted, the server's own when 0.

        Raises:
            ValueError: it is an array of another shape or type.
        """
        request = _request(image, model, key, target_error_rate)
        return _recognition(self._stub.Recognize(request, timeout=self._timeout, metadata=self._metadata))

    def recognize_batch(
        self,
        images: NDArray[np.uint8] | Sequence[bytes],
        *,
        model: str = "",
        key: str = "",
        target_error_rate: float = 0.0,
    ) -> list[Recognition]:
        """Reads n images in one call: (n, 28, 28) uint8, 0 paper, 255 ink; or crops, the contents of n PNG or JPEG files.

        A crop that can't be read is answered with the decision REJECT_INVALID_IMAGE.

        Raises:
            ValueError: it is an array of another shape or type.
        """
        request = pb.RecognizeBatchRequest(model=model, key=key, target_error_rate=target_error_rate)
        _put(images, request)
        answer = self._stub.RecognizeBatch(request, timeout=self._timeout, metadata=self._metadata)
        probabilities = np.array(answer.probabilities, np.float32).reshape(-1, 10)
        same, audits = _threshold(answer), set(answer.audits)
        columns = (answer.digits, answer.confidences, probabilities, map(_decision, answer.decisions))
        return [
            Recognition(
                digit,
                confidence,
                row,
                answer.model_version,
                decision,
                *same,
                trouble=answer.troubles.get(place, ""),
                recognition_id=answer.recognition_id,
                place=place,
                audit=place in audits,
                captured=answer.captured and (place in audits or decision not in _NEVER_CAPTURED),
            )
            for place, (digit, confidence, row, decision) in enumerate(zip(*columns, strict=True))
        ]

    def read_field(
        self,
        images: NDArray[np.uint8] | Sequence[bytes],
        *,
        lexicon: str = "",
        model: str = "",
        key: str = "",
        target_error_rate: float = 0.0,
    ) -> Field:
        """Reads one field, the images of its digits from left to right, as `recognize_batch` takes them.

        Args:
            images: up to 18 of them.
            lexicon: name of one that the server has; then the answer is the most probable code in it.
            model: as in `recognize`.
            key: as in `recognize`.
            target_error_rate: share of wrong fields to bear among those accepted, the server's own when 0.

        Raises:
            ValueError: it is an array of another shape or type.
        """
        request = pb.ReadFieldRequest(model=model, key=key, lexicon=lexicon, target_error_rate=target_error_rate)
        _put(images, request)
        answer = self._stub.ReadField(request, timeout=self._timeout, metadata=self._metadata)
        return Field(
            answer.value,
            answer.confidence,
            _decision(answer.decision),
            np.array([one.digits for one in answer.digits], np.intp),
            np.array([one.probabilities for one in answer.digits], np.float32),
            answer.model_version,
            *_threshold(answer),
            troubles=dict(answer.troubles),
            recognition_id=answer.recognition_id,
            audit=answer.audit,
            captured=answer.captured,
        )

    def report_truth(self, truths: Iterable[tuple[Recognition | Field, str | int]], source: str) -> int:
        """Tells the server what was really there.

        Args:
            truths: answers, each with the true digit, or all the digits of the field, which may begin with zeros.
            source: keying, audit or replay; audits are only of answers that were marked for audit.

        Returns:
            How many were counted now, and had not been before.

        Raises:
            ValueError: there is no such source.
        """
        known = {name.removeprefix("TRUTH_SOURCE_").lower(): name for name, number in pb.TruthSource.items() if number}
        if source not in known:
            raise ValueError(f"source is {source!r}, expected one of {', '.join(known)}")
        by_id: dict[str, pb.Truth] = {}
        for answer, value in truths:
            one = pb.Truth(recognition_id=answer.recognition_id, source=known[source])
            by_id.setdefault(answer.recognition_id, one).values[answer.place] = str(value)
        request = pb.ReportTruthRequest(truths=by_id.values())
        return int(self._stub.ReportTruth(request, timeout=self._timeout, metadata=self._metadata).counted)

    def recognize_stream(
        self,
        images: Iterable[NDArray[np.uint8] | bytes],
        *,
        model: str = "",
        key: str = "",
        target_error_rate: float = 0.0,
    ) -> Iterator[tuple[int, Recognition | Refusal]]:
        """Reads images or crops as they come, each as `recognize` takes it, on one stream with many on their way.

        Args:
            images: taken from another thread, no faster than the answers are.
            model: as in `recognize`.
            key: as in `recognize`.
            target_error_rate: as in `recognize`.

        Yields:
            The place of an image among `images`, from 0, and what it shows or why it was not read; as they come to be ready,
            which is not in order. An image that is not read in the client's timeout is refused.

        Raises:
            ValueError: an image is something else; those before it are answered first.
            grpc.RpcError: the stream has ended before everything was answered.
        """
        milliseconds = max(1, round(self._timeout * 1000))
        mistake: Exception | None = None

        def requests() -> Iterator[pb.RecognizeStreamRequest]:
            nonlocal mistake
            try:
                for place, image in enumerate(images):
                    request = _request(image, model, key, target_error_rate)
                    yield pb.RecognizeStreamRequest(id=place, request=request, timeout_ms=milliseconds)
            except Exception as error:  # gRPC would cancel the call, and keep the reason to itself
                mistake = error

        stream = self._stub.RecognizeStream(requests(), metadata=self._metadata)
        try:
            for answer in stream:
                if answer.HasField("answer"):
                    yield answer.id, _recognition(answer.answer)
                else:
                    yield answer.id, Refusal(_CODES[answer.error.code], answer.error.message)
        finally:
            stream.cancel()
        if mistake:
            raise mistake

    def close(self) -> None:
        """Closes the connection; calls in flight end with CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _request(image: NDArray[np.uint8] | bytes, model: str, key: str, target_error_rate: float) -> pb.RecognizeRequest:
    request = pb.RecognizeRequest(model=model, key=key, target_error_rate=target_error_rate)
    if isinstance(image, bytes):
        request.crop = image
    else:
        request.image = _require(image, 2).tobytes()
    return request


def _put(images: NDArray[np.uint8] | Sequence[bytes], request: pb.RecognizeBatchRequest | pb.ReadFieldRequest) -> None:
    if isinstance(images, np.ndarray):
        request.images = _require(images, 3).tobytes()
    else:
        request.crops.extend(images)


def _recognition(answer: pb.RecognizeResponse) -> Recognition:
    return Recognition(
        answer.digit,
        answer.confidence,
        np.array(answer.probabilities, np.float32),
        answer.model_version,
        _decision(answer.decision),
        *_threshold(answer),
        recognition_id=answer.recognition_id,
        audit=answer.audit,
        captured=answer.captured,
    )


def _decision(number: int) -> Decision:
    """UNSPECIFIED for one that only a newer server knows."""
    return Decision(number) if number in set(Decision) else Decision.UNSPECIFIED


def _threshold(
    answer: pb.RecognizeResponse | pb.RecognizeBatchResponse | pb.ReadFieldResponse,
) -> tuple[float | None, float | None]:
    return (answer.threshold, answer.target_error_rate) if answer.HasField("threshold") else (None, None)


def _require(images: NDArray[np.uint8], dimensions: int) -> NDArray[np.uint8]:
    images = np.asarray(images)
    if images.ndim != dimensions or images.shape[-2:] != IMAGE_SHAPE or images.dtype != np.uint8 or not len(images):
        expected = "(28, 28)" if dimensions == 2 else "(n, 28, 28), n at least 1,"
        raise ValueError(f"images have shape {images.shape} and type {images.dtype}, expected {expected} and uint8")
    return images
