"""Calls, streams, answers and connections that a client begins and keeps."""

import asyncio
import contextlib
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from tests.robustness.attacker import DIGITS, INFER, OPENING, close, connected, open_raw
from tests.robustness.case import Attack, Case
from tests.robustness.target import Target
from tests.support.http2_client import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    frame,
    grpc_message,
    header_block,
    read_frame,
)
from tests.support.http2_wire import settings

_HELD_SECONDS = 2.0
_REFUSED_SECONDS = 10.0  # time in which a busy service has refused what is too much
_CALLS, _STREAMS, _WATCHES, _CONNECTIONS = 10_000, 100, 200, 250  # limits; a watch is one of health, or of reflection
_WINDOW = 4  # a setting of HTTP/2: bytes of an answer that the client takes without a sign


@dataclass
class _Held:
    """A connection that the attacker keeps.

    Attributes:
        writer: its other side closes it.
        begun: calls that were begun on it.
        ended: streams of those that the server has ended.
        reading: runs until the server closes the connection.
    """

    writer: asyncio.StreamWriter
    begun: int
    ended: set[int] = field(default_factory=set)
    reading: asyncio.Task[None] = field(init=False)

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Notes which calls end, until the server closes the connection."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                kind, bits, stream, _ = await read_frame(reader)
                if kind == RST_STREAM or (kind in (HEADERS, DATA) and bits & END_STREAM):
                    self.ended.add(stream)

    def open(self) -> int:
        """Returns the number of its calls that are open, or 1 for an open connection that never had a call."""
        return 0 if self.reading.done() else max(1, self.begun) - len(self.ended)


async def _held(target: Target, openings: list[bytes], calls: int, limit: int) -> Counter[str]:
    """Sends each opening on a connection of its own, keeps all for a while, and counts what the server leaves open.

    Args:
        target: the service.
        openings: first bytes of the connections.
        calls: number of calls that each opening begins. With 0, connections are counted in place of calls.
        limit: number that the service may leave open.
    """
    held: list[_Held] = []
    for opening in openings:
        with contextlib.suppress(OSError):
            reader, writer = await open_raw(target.port, opening)
            held.append(one := _Held(writer, calls))
            one.reading = asyncio.create_task(one.read(reader))
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (seconds := loop.time() - began) < _REFUSED_SECONDS:
        if seconds > _HELD_SECONDS and sum(one.open() for one in held) <= limit:
            break
        await asyncio.sleep(0.1)
    still_open = sum(one.open() for one in held)
    for one in held:
        one.reading.cancel()
        await close(one.writer)
    return Counter([_bounded(limit) if 0 < still_open <= limit else f"{still_open} open"])


def _bounded(limit: int) -> str:
    return f"1 to {limit} open"


def _begun(path: str, count: int, body: bytes = b"", window: int = 0) -> bytes:
    """Begins calls on one connection, each with a part of its message, and takes this many bytes of each answer."""
    block = header_block(path)
    parts = []
    for stream in range(1, 2 * count, 2):
        parts.append(frame(HEADERS, END_HEADERS, stream, block))
        if body:
            parts.append(frame(DATA, 0, stream, body))
    return PREFACE + settings((_WINDOW, window)) + b"".join(parts)


def _half_open(path: str, body: bytes = b"") -> Attack:
    async def attack(target: Target) -> Counter[str]:
        return await _held(target, [_begun(path, 1000, body)] * 20, 1000, _CALLS)

    return attack


async def _idle_streams(target: Target) -> Counter[str]:
    """Opens 1,600 streams for answers that never get a request."""
    return await _held(target, [_begun(f"{DIGITS}/RecognizeStream", 100)] * 16, 100, _STREAMS)


async def _idle_watches(target: Target) -> Counter[str]:
    """Opens 1,600 streams of health and reflection, and leaves them open."""
    paths = ("/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    openings = [_begun(path, 100, grpc_message(b""), window=1000) for path in paths * 8]  # a refusal follows what was sent
    return await _held(target, openings, 100, _WATCHES)


async def _idle_connections(target: Target, opening: bytes) -> Counter[str]:
    """Opens 1,100 connections that say nothing more."""
    return await _held(target, [opening] * 1100, 0, _CONNECTIONS)


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


def _hoard(name: str, attack: Attack, limit: int) -> Case:
    return Case(name, attack, frozenset({_bounded(limit)}), fronts=_ONE)


CASES = (
    _hoard("20000 calls without a message", _half_open(f"{DIGITS}/Recognize"), _CALLS),
    _hoard("20000 calls with a part of a message", _half_open(f"{DIGITS}/RecognizeBatch", _STREAMED[:100]), _CALLS),
    # gRPC's own server ends calls of anybody as CANCELLED while more than --max-pending-calls come at once.
    _hoard("1600 idle streams", _idle_streams, _STREAMS),
    _hoard("1600 idle streams of health and reflection", _idle_watches, _WATCHES),
    _hoard("1100 idle connections", partial(_idle_connections, opening=OPENING), _CONNECTIONS),
    _hoard("1100 connections without a byte", partial(_idle_connections, opening=b""), _CONNECTIONS),
    Case("answers of a megabyte not taken", partial(_answers_not_taken, message=_large_batch(), count=8), fronts=_ONE),
    Case("answers with a long id not taken", partial(_answers_not_taken, message=_long_id(), count=8)),
    Case("answers of a stream not taken", partial(_answers_not_taken, message=_STREAMED, count=20_000)),
)
