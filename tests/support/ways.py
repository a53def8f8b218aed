"""The two ways of a request through the dispatcher of a server: a task of its own, and by the run of the model."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from google.protobuf.message import Message

from serving.answers.recognition_id import RecognitionIds
from serving.call import Call, Pending
from serving.errors import RequestError
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from serving.process.server import Server
from serving.security.tokens import Metadata
from tests.support.calls import TIMEOUT

_PATHS = {
    pb.RecognizeRequest: "/digits.v1.DigitService/Recognize",
    inference.ModelInferRequest: "/inference.GRPCInferenceService/ModelInfer",
}


class Sent(NamedTuple):
    """A request that a test sends.

    Attributes:
        request: the message.
        seconds: time to its deadline.
        metadata: metadata of the call.
    """

    request: pb.RecognizeRequest | inference.ModelInferRequest
    seconds: float = math.inf
    metadata: Metadata = ()


@dataclass
class Outcome:
    """The end of a call; as a reply, it also checks that a call ends once."""

    encoded: bytes = b""
    error: RequestError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def succeed(self, encoded: bytes) -> None:
        assert not self.ended.is_set()
        self.encoded = encoded
        self.ended.set()

    def fail(self, error: RequestError) -> None:
        assert not self.ended.is_set()
        self.error = error
        self.ended.set()


def call_of(server: Server, sent: Sent) -> Call:
    """Creates the call, whose caller the server admits."""
    method = server.dispatcher.methods[_PATHS[type(sent.request)]]
    client = server.dispatcher.admit(method.role, lambda: sent.metadata)
    return Call(time.monotonic() + sent.seconds, client, None, lambda: "ipv4:127.0.0.1:7", lambda: sent.metadata)


def enter(server: Server, sent: Sent, reply: Outcome) -> Pending | None:
    """Sends a request by the run."""
    method = server.dispatcher.methods[_PATHS[type(sent.request)]]
    return server.dispatcher.enter(method, sent.request.SerializeToString(), call_of(server, sent), reply)


async def answer_by_run(server: Server, requests: Sequence[Sent]) -> list[Outcome]:
    """Sends all requests at once by the run, and waits for their ends."""
    outcomes = [Outcome() for _ in requests]
    for sent, outcome in zip(requests, outcomes, strict=True):
        assert enter(server, sent, outcome), "this request can't be answered by the run"
    async with asyncio.timeout(TIMEOUT):
        for outcome in outcomes:
            await outcome.ended.wait()
    return outcomes


async def answer_in_tasks(server: Server, requests: Sequence[Sent]) -> list[Outcome]:
    """Sends all requests at once, each in a task of its own, and waits for their ends."""

    async def answer(sent: Sent) -> Outcome:
        method = server.dispatcher.methods[_PATHS[type(sent.request)]]
        call = call_of(server, sent)
        try:
            work = server.dispatcher.answer(method, sent.request.SerializeToString(), call)
            return Outcome(await server.dispatcher.traced(method, call, work))
        except RequestError as error:
            return Outcome(error=error)

    async with asyncio.timeout(TIMEOUT):
        return await asyncio.gather(*[answer(sent) for sent in requests])


def readable(sent: Sent, outcome: Outcome) -> tuple[Message | str, Mapping[str, Any] | None]:
    """Returns the answer, or the error as text, without the recognition id; and the content of the id without its nonce.

    An answer by the run writes its fields in another order, and also those with the value 0: parsers read both alike.
    """
    if outcome.error:
        return f"{outcome.error.code.name} {outcome.error.reason} {outcome.error}", None
    message: pb.RecognizeResponse | inference.ModelInferResponse
    if isinstance(sent.request, pb.RecognizeRequest):
        message = pb.RecognizeResponse.FromString(outcome.encoded)
        recognition_id, message.recognition_id = message.recognition_id, ""
    else:
        message = inference.ModelInferResponse.FromString(outcome.encoded)
        if "recognition_id" not in message.parameters:
            return message, None
        recognition_id = message.parameters["recognition_id"].string_param
        message.parameters["recognition_id"].string_param = ""
    content = RecognitionIds().parse(recognition_id)
    fields = ("model", "version", "of_field", "digits", "decisions", "audited", "confidences")
    return message, {name: getattr(content, name) for name in fields}
