"""The RPCs of a load test: encodes requests, sends them over gRPC, and reads the digits in the answers."""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from serving.client import channel_credentials
from serving.client.channel import BALANCED
from serving.loadtest.plan import Plan, Rpc
from serving.loadtest.target import Caller, Digits, Images, Outcome
from serving.pb.digits.v1 import digit_service_pb2 as digits
from serving.pb.inference import open_inference_pb2 as inference

Metadata = tuple[tuple[str, str], ...] | None


@dataclass(frozen=True)
class Kind:
    """An RPC of a load test.

    Attributes:
        method: path of the method.
        request: builds the request message from images, (n, 28, 28) uint8, and the plan.
        response: type of the response message.
        digits: returns the digits in a response.
    """

    method: str
    request: Callable[[Images, Plan], Any]
    response: Any
    digits: Callable[[Any], Digits]


def _infer(images: Images, plan: Plan) -> inference.ModelInferRequest:
    request = inference.ModelInferRequest(model_name=plan.model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    request.outputs.add(name="probabilities")
    if plan.priority != "live":
        request.parameters["priority"].string_param = plan.priority
    return request


def _inferred(answer: inference.ModelInferResponse) -> Digits:
    probabilities = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(-1, 10)
    return tuple(probabilities.argmax(axis=1).tolist())


def _options(plan: Plan) -> dict[str, Any]:
    return {"model": plan.model, "priority": digits.PRIORITY_BATCH if plan.priority == "batch" else digits.PRIORITY_LIVE}


_NATIVE = "/digits.v1.DigitService/"
KINDS: dict[Rpc, Kind] = {
    "recognize": Kind(
        _NATIVE + "Recognize",
        lambda images, plan: digits.RecognizeRequest(image=images[0].tobytes(), **_options(plan)),
        digits.RecognizeResponse,
        lambda answer: (answer.digit,),
    ),
    "batch": Kind(
        _NATIVE + "RecognizeBatch",
        lambda images, plan: digits.RecognizeBatchRequest(images=images.tobytes(), **_options(plan)),
        digits.RecognizeBatchResponse,
        lambda answer: tuple(answer.digits),
    ),
    "field": Kind(
        _NATIVE + "ReadField",
        lambda images, plan: digits.ReadFieldRequest(images=images.tobytes(), **_options(plan)),
        digits.ReadFieldResponse,
        lambda answer: tuple(map(int, answer.value)),
    ),
    "infer": Kind("/inference.GRPCInferenceService/ModelInfer", _infer, inference.ModelInferResponse, _inferred),
}


@dataclass(frozen=True)
class GrpcTarget:
    """A service under test that speaks digits.v1 or the Open Inference Protocol over gRPC.

    Attributes:
        address: host:port, or a name of several servers, as for DigitClient.
        tls_ca: PEM file with the CA of the server; None without TLS.
        tls_certificate: PEM file with the client's certificate; None without mutual TLS.
        tls_key: PEM file with the client's key; None without mutual TLS.
        token: bearer token; None without tokens.
    """

    address: str
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    token: str | None = None

    def request(self, plan: Plan, images: Images) -> bytes:
        """Encodes a request of `images`."""
        kind = KINDS["recognize" if plan.rpc == "stream" else plan.rpc]
        return bytes(kind.request(images, plan).SerializeToString())

    def callers(self, plan: Plan) -> list[Caller]:
        """Opens channels that share no connection, because the workers of a service divide up connections, not calls.

        If the address names several servers, each channel connects to each of them.
        """
        metadata = None if self.token is None else (("authorization", f"Bearer {self.token}"),)
        kind = StreamCaller if plan.rpc == "stream" else UnaryCaller
        return [kind(self._channel(), plan, metadata) for _ in range(plan.connections)]

    def _channel(self) -> grpc.aio.Channel:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_retries", 0),  # a call that is sent twice would add load beyond the plan
            ("grpc.service_config", json.dumps(BALANCED)),
        ]
        if self.tls_ca is None:
            return grpc.aio.insecure_channel(self.address, options)
        credentials = channel_credentials(self.tls_ca, self.tls_certificate, self.tls_key)
        return grpc.aio.secure_channel(self.address, credentials, options)


class UnaryCaller:
    """Sends each call as an RPC of its own."""

    def __init__(self, channel: grpc.aio.Channel, plan: Plan, metadata: Metadata):
        kind = KINDS[plan.rpc]
        self._digits, self._channel = kind.digits, channel
        self._timeout, self._metadata = plan.timeout_seconds, metadata
        self._call: Any = channel.unary_unary(kind.method, response_deserializer=kind.response.FromString)

    async def call(self, request: bytes) -> Outcome:
        """Sends the request and waits for the answer."""
        try:
            answer = await self._call(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return Outcome(error.code().name, details=error.details() or "")
        try:
            return Outcome("OK", self._digits(answer))
        except (IndexError, ValueError):  # an answer without digits counts as wrong
            return Outcome("OK")

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()


class StreamCaller:
    """Sends each call as one image on an open stream. After a stream breaks, the next call opens a new one."""

    def __init__(self, channel: grpc.aio.Channel, plan: Plan, metadata: Metadata):
        self._timeout, self._metadata, self._channel = plan.timeout_seconds, metadata, channel
        self._open = channel.stream_stream(
            _NATIVE + "RecognizeStream",
            request_serializer=digits.RecognizeStreamRequest.SerializeToString,
            response_deserializer=digits.RecognizeStreamResponse.FromString,
        )
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._stream: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    async def call(self, request: bytes) -> Outcome:
        """Sends an image and waits for its answer."""
        number = next(self._numbers)
        message = digits.RecognizeStreamRequest(id=number, timeout_ms=round(self._timeout * 1000))
        message.request.MergeFromString(request)
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout):
                async with self._writing:
                    if self._reading is None or self._reading.done():
                        self._stream = self._open(metadata=self._metadata)
                        self._reading = asyncio.create_task(self._read(self._stream))
                    self._waiting[number] = answered
                    await self._stream.write(message)
                return await answered
        except TimeoutError:
            return Outcome("DEADLINE_EXCEEDED")
        except grpc.aio.AioRpcError as error:
            return _failed(error)
        except asyncio.InvalidStateError:  # the stream has ended between two calls
            return _ENDED
        finally:
            self._waiting.pop(number, None)

    async def _read(self, stream: Any) -> None:
        ended = _ENDED
        try:
            async for message in stream:
                answered = self._waiting.get(message.id)
                if answered and not answered.done():
                    answered.set_result(_outcome(message))
        except grpc.aio.AioRpcError as error:
            ended = _failed(error)
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_result(ended)

    async def close(self) -> None:
        """Ends the stream, and closes the connection."""
        if self._stream is not None:
            self._stream.cancel()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=1)
        await self._channel.close()


_ENDED = Outcome("UNAVAILABLE", details="the stream has ended")


def _failed(error: grpc.aio.AioRpcError) -> Outcome:
    """Returns the status that a stream ended with.

    If the stream ends during a write, gRPC raises an error of its own in place of the status.
    """
    if error.details() == "Internal error from Core":
        return _ENDED
    return Outcome(error.code().name, details=error.details() or "")


def _outcome(message: digits.RecognizeStreamResponse) -> Outcome:
    if message.WhichOneof("outcome") == "error":
        return Outcome(_CODES[message.error.code], details=message.error.message)
    return Outcome("OK", (message.answer.digit,))


_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
