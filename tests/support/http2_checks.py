"""Requests and checks that tests of the limits of HTTP/2 share."""

import asyncio
import contextlib

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from tests.support.calls import TIMEOUT
from tests.support.digit_calls import connect, recognize
from tests.support.http2_client import grpc_message


def image_message() -> bytes:
    return grpc_message(pb.RecognizeRequest(image=bytes(784)).SerializeToString())


async def assert_closes(reader: asyncio.StreamReader) -> None:
    """Checks that the server closes a connection; it may leave bytes unread, which resets the connection."""
    async with asyncio.timeout(TIMEOUT):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()


async def assert_answers(server: Server) -> None:
    """Checks that another client is answered."""
    async with connect(server) as stub:
        await recognize(stub, bytes(784))
