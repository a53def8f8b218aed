"""Calls, streams, answers and connections that a client begins and keeps."""

import asyncio
import contextlib
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from tests.robustness.attacker import DIGITS, INFER, OPENING, close, connected, discard, open_raw
from tests.robustness.case import Attack, Case
from tests.robustness.target import Target
from tests.support.http2_client import DATA, END_HEADERS, HEADERS, PREFACE, frame, grpc_message, header_block
from tests.support.http2_wire import settings

_HELD_SECONDS = 2.0
_WINDOW = 4  # a setting of HTTP/2: bytes of an answer that the client takes without a sign


async def _held(target: Target, openings: list[bytes]) -> int:
    """Sends each opening on a connection of its own, and keeps all for a while. Returns the number still open then."""
    held = []
    for opening in openings:
        with contextlib.suppress(OSError):
            reader, writer = await open_raw(target.port, opening)
            held.append((asyncio.create_task(discard(reader)), writer))
    await asyncio.sleep(_HELD_SECONDS)
    still_open = sum(not reading.done() for reading, _ in held)
    for reading, writer in held:
        reading.cancel()
        await close(writer)
    return still_open


def _begun(path: str, count: int, body: bytes = b"") -> bytes:
    """Begins calls on one connection, each with a part of its message."""
    block = header_block(path)
    parts = []
    for stream in range(1, 2 * count, 2):
        parts.append(frame(HEADERS, END_HEADERS, stream, block))
        if body:
            parts.append(frame(DATA, 0, stream, body))
    return PREFACE + settings((_WINDOW, 0)) + b"".join(parts)


def _half_open(path: str, body: bytes = b"") -> Attack:
    async def attack(target: Target) -> Counter[str]:
        await _held(target, [_begun(path, 1000, body)] * 20)
        return Counter()

    return attack


async def _idle_streams(target: Target) -> Counter[str]:
    """Opens 1,600 streams for answers that never get a request."""
    await _held(target, [_begun(f"{DIGITS}/RecognizeStream", 100)] * 16)
    return Counter()


async def _idle_watches(target: Target) -> Counter[str]:
    """Opens 1,600 streams of health and reflection, and leaves them open."""
    paths = ("/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    await _held(target, [_begun(path, 100, grpc_message(b"")) for path in paths * 8])
    return Counter()


async def _idle_connections(target: Target, opening: bytes) -> Counter[str]:
    """Opens 1,100 connections that say nothing more."""
    await _held(target, [opening] * 1100)
    return Counter()


def _large_batch() -> bytes:
    """Encodes a request whose answer has about a megabyte."""
    request = inference.ModelInferRequest(raw_input_contents=[bytes(784) * 5000])
    request.inputs.add(name="images", datatype="UINT8", shape=[5000, 28, 28])
    for name in ("digits", "confidences", "probabilities", "logits", "decisions"):
        request.outputs.add(name=name)
    return grpc_message(request.SerializeToString())


def _long_id() -> bytes:
    """Encodes a request with an id of four megabytes, which an answer would repeat."""
    request = inference.ModelInferRequest(id="i" * 4_000_000, raw_input_contents=[bytes(784)])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    return grpc_message(request.SerializeToString())


async def _answers_not_taken(target: Target, message: bytes, count: int) -> Counter[str]:
    """Sends requests on three streams, and takes no answer: the window for answers is 0."""
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(connected(target.port, {_WINDOW: 0}))
            client.send(f"{INFER}/ModelStreamInfer", message * count, ends=False)
        await asyncio.sleep(2 * _HELD_SECONDS)
    return Counter()


_STREAMED = grpc_message(pb.RecognizeStreamRequest(id=1, request=pb.RecognizeRequest(image=bytes(784))).SerializeToString())
_ONE = ("http2",)

CASES = (
    Case("20000 calls without a message", _half_open(f"{DIGITS}/Recognize"), fronts=_ONE),
    Case("20000 calls with a part of a message", _half_open(f"{DIGITS}/RecognizeBatch", _STREAMED[:100]), fronts=_ONE),
    # gRPC's own server ends calls of anybody as CANCELLED while more than --max-pending-calls come at once.
    Case("1600 idle streams", _idle_streams, fronts=_ONE),
    Case("1600 idle streams of health and reflection", _idle_watches, fronts=_ONE),
    Case("1100 idle connections", partial(_idle_connections, opening=OPENING), fronts=_ONE),
    Case("1100 connections without a byte", partial(_idle_connections, opening=b""), fronts=_ONE),
    Case("answers of a megabyte not taken", partial(_answers_not_taken, message=_large_batch(), count=8), fronts=_ONE),
    Case("answers with a long id not taken", partial(_answers_not_taken, message=_long_id(), count=8)),
    Case("answers of a stream not taken", partial(_answers_not_taken, message=_STREAMED, count=20_000)),
)
