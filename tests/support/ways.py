"""The two ways of a request through the dispatcher of a server: a task of its own, and by the run of the model."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from google.protobuf.message import Message

from serving.answers.recognition_id import RecognitionIds
from serving.api.rpc import Method
from serving.api.stream_reply import StreamReply
from serving.call import Call, Pending
from serving.errors import RequestError
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from serving.process.server import Server
from serving.repository import loader
from serving.security.tokens import Metadata
from tests.support.calls import TIMEOUT
from tests.support.servers import StartServer


class _Kind(NamedTuple):
    """A kind of request: the path of its method, its answer, and the field of the answer that has the digit, if not all."""

    path: str
    answer: type[Message]
    field: str = ""


_KINDS = {
    (pb.RecognizeRequest, False): _Kind("/digits.v1.DigitService/Recognize", pb.RecognizeResponse),
    (pb.RecognizeStreamRequest, True): _Kind(
        "/digits.v1.DigitService/RecognizeStream", pb.RecognizeStreamResponse, "answer"
    ),
    (inference.ModelInferRequest, False): _Kind("/inference.GRPCInferenceService/ModelInfer", inference.ModelInferResponse),
    (inference.ModelInferRequest, True): _Kind(
        "/inference.GRPCInferenceService/ModelStreamInfer", inference.ModelStreamInferResponse, "infer_response"
    ),
}


class Sent(NamedTuple):
    """A request that a test sends.

    Attributes:
        request: the message.
        seconds: time to its deadline.
        metadata: metadata of the call.
        streamed: True for a request of a stream.
    """

    request: pb.RecognizeRequest | pb.RecognizeStreamRequest | inference.ModelInferRequest
    seconds: float = math.inf
    metadata: Metadata = ()
    streamed: bool = False


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


def _method(server: Server, sent: Sent) -> Method[Any, Any]:
    return server.dispatcher.methods[_KINDS[type(sent.request), sent.streamed].path]


def call_of(server: Server, sent: Sent) -> Call:
    """Creates the call, whose caller the server admits."""
    method = _method(server, sent)
    client = server.dispatcher.admit(method.role, lambda: sent.metadata)
    return Call(time.monotonic() + sent.seconds, client, None, lambda: "ipv4:127.0.0.1:7", lambda: sent.metadata)


def enter(server: Server, sent: Sent, reply: Outcome) -> Pending | None:
    """Sends a request by the run."""
    return server.dispatcher.enter(_method(server, sent), sent.request.SerializeToString(), call_of(server, sent), reply)


async def answer_by_run(server: Server, requests: Sequence[Sent]) -> list[Outcome]:
    """Sends all requests at once by the run, and waits for their ends."""
    outcomes = [Outcome() for _ in requests]
    streamed = []
    for sent, outcome in zip(requests, outcomes, strict=True):
        if sent.streamed:
            reply = server.dispatcher.begin(_method(server, sent), sent.request.SerializeToString(), call_of(server, sent))
            assert isinstance(reply, StreamReply), "this request can't be answered by the run"
            streamed.append(asyncio.create_task(_take(reply, outcome)))
        else:
            assert enter(server, sent, outcome), "this request can't be answered by the run"
    async with asyncio.timeout(TIMEOUT):
        for outcome in outcomes:
            await outcome.ended.wait()
    return outcomes


async def start_lone(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Starts a server that runs a lone image at once, however slow the machine is, and that has no caller about."""
    monkeypatch.setattr(loader, "_BRIEF_SECONDS", 1.0)
    server = await start_server()
    sent = Sent(pb.RecognizeRequest(image=b"\x80" * 784))
    await answer_by_run(server, [sent] * 3)
    await answer_by_run(server, [sent])
    await asyncio.sleep(0.05)
    await answer_by_run(server, [sent])
    await asyncio.sleep(0.05)
    return server


async def _take(reply: asyncio.Future[bytes], outcome: Outcome) -> None:
    """Waits for the answer to a request of a stream."""
    try:
        outcome.succeed(await reply)
    except RequestError as error:
        outcome.fail(error)


async def answer_in_tasks(server: Server, requests: Sequence[Sent]) -> list[Outcome]:
    """Sends all requests at once, each in a task of its own, and waits for their ends."""

    async def answer(sent: Sent) -> Outcome:
        method = _method(server, sent)
        call = call_of(server, sent)
        try:
            work = server.dispatcher.answer(method, sent.request.SerializeToString(), call)
            return Outcome(await (work if sent.streamed else server.dispatcher.traced(method, call, work)))
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
    kind = _KINDS[type(sent.request), sent.streamed]
    message = kind.answer.FromString(outcome.encoded)
    answer: Any = getattr(message, kind.field) if kind.field else message
    has_field = isinstance(answer, pb.RecognizeResponse)
    parameter = answer.recognition_id if has_field else answer.parameters.get("recognition_id")
    recognition_id = parameter if has_field else getattr(parameter, "string_param", "")
    if not recognition_id:
        return message, None
    if has_field:
        answer.recognition_id = ""
    else:
        del answer.parameters["recognition_id"]
    content = RecognitionIds().parse(recognition_id)
    fields = ("model", "version", "of_field", "digits", "decisions", "audited", "confidences")
    return message, {name: getattr(content, name) for name in fields}
