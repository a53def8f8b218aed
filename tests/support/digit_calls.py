"""Calls to digits.v1.DigitService of a server in this process, each with a timeout."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[DigitServiceStub]:
    """Opens a channel to the server for the time of the block."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield DigitServiceStub(channel)


async def recognize(stub: DigitServiceStub, image: bytes, timeout: float = TIMEOUT) -> pb.RecognizeResponse:
    answer: pb.RecognizeResponse = await stub.Recognize(pb.RecognizeRequest(image=image), timeout=timeout)
    return answer


async def recognize_batch(stub: DigitServiceStub, images: bytes = b"", **fields: Any) -> pb.RecognizeBatchResponse:
    request = pb.RecognizeBatchRequest(images=images, **fields)
    answer: pb.RecognizeBatchResponse = await stub.RecognizeBatch(request, timeout=TIMEOUT)
    return answer


async def read_field(stub: DigitServiceStub, images: bytes = b"", **fields: Any) -> pb.ReadFieldResponse:
    request = pb.ReadFieldRequest(images=images, **fields)
    answer: pb.ReadFieldResponse = await stub.ReadField(request, timeout=TIMEOUT)
    return answer
