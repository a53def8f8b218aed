"""gRPC server reflection, versions v1 and v1alpha, whose messages are the same on the wire."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.call import Call
from serving.errors import InvalidRequest
from serving.transport.routes import Handler, Streaming, Write
from serving.transport.shares import Places

_MAX_STREAMS = 100  # open at once: each takes memory for as long as its caller likes

_MAX_BYTES = 1 << 16  # of a request, which holds one name

NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def handlers(services: Sequence[str]) -> dict[str, Handler]:
    """Returns the handlers of both versions, by path. They list `services` and v1alpha: all of it is public.

    They don't list v1, because there is no descriptor of it: tools that describe every listed service would fail.
    """
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME])
    places = Places(_MAX_STREAMS, f"{_MAX_STREAMS} streams of reflection are open, which is the limit")

    async def run(requests: AsyncIterator[bytes], write: Write, call: Call) -> None:
        with places.take(call.source):
            # The stubs of grpc_reflection declare this async generator as a coroutine.
            answers: Any = servicer.ServerReflectionInfo(_parsed(requests, call), None)
            async for answer in answers:
                await write(answer.SerializeToString())

    return {f"/{name}/ServerReflectionInfo": Streaming(run, endless=True, max_bytes=_MAX_BYTES) for name in NAMES}


async def _parsed(requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    async for encoded in requests:
        if call.client is not None:
            call.client.require_valid()
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(encoded)
        except DecodeError:
            raise InvalidRequest("the request is not a ServerReflectionRequest message") from None
