"""gRPC server reflection, versions v1 and v1alpha, whose messages are the same on the wire."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.call import Call
from serving.errors import InvalidRequest
from serving.transport.routes import Handler, Streaming, Write

NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def handlers(services: Sequence[str]) -> dict[str, Handler]:
    """Returns the handlers of both versions, by path. They list `services` and v1alpha: all of it is public.

    They don't list v1, because there is no descriptor of it: tools that describe every listed service would fail.
    """
    servicer = reflection.aio.ReflectionServicer([*services, reflection.SERVICE_NAME])

    async def run(requests: AsyncIterator[bytes], write: Write, call: Call) -> None:
        answers: Any = servicer.ServerReflectionInfo(
            _parsed(requests), None
        )  # its stubs call this async generator a coroutine
        async for answer in answers:
            await write(answer.SerializeToString())

    return {f"/{name}/ServerReflectionInfo": Streaming(run, endless=True) for name in NAMES}


async def _parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    async for encoded in requests:
        try:
            yield reflection_pb2.ServerReflectionRequest.FromString(encoded)
        except DecodeError:
            raise InvalidRequest("the request is not a ServerReflectionRequest message") from None
