"""An attacker's connections. They come from 127.0.0.2, so that the service tells the attacker from the polite caller."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from tests.support.http2_client import PREFACE, SETTINGS, Http2Client, Response, frame, grpc_message, http2_client

ADDRESS = ("127.0.0.2", 0)
OPENING = PREFACE + frame(SETTINGS, 0, 0)

DIGITS = "/digits.v1.DigitService"
INFER = "/inference.GRPCInferenceService"

_ANSWER_SECONDS = 20.0
_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}


@asynccontextmanager
async def connected(port: int, settings: Mapping[int, int] | None = None) -> AsyncIterator[Http2Client]:
    """Connects with a client of HTTP/2 that has these settings."""
    async with http2_client(port, settings, local_address=ADDRESS) as client:
        yield client


async def outcome(response: Response) -> str:
    """Waits for the end of a call. Returns the name of its status code, or how the call ended without one."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await response.ended.wait()
    except TimeoutError:
        return "no answer"
    if "grpc-status" in response.headers:
        return _CODES[response.headers["grpc-status"]]
    return "connection closed" if response.reset is None else f"reset {response.reset}"


async def call(port: int, path: str, message: bytes, **headers: Any) -> str:
    """Makes one call on a connection of its own. Returns its outcome."""
    async with connected(port) as client:
        return await outcome(client.send(path, grpc_message(message), **headers)[1])


async def calls(port: int, path: str, messages: Sequence[bytes]) -> Counter[str]:
    """Makes calls at once, all on one connection. Counts their outcomes."""
    async with connected(port) as client:
        responses = [client.send(path, grpc_message(message))[1] for message in messages]
        return Counter([await outcome(response) for response in responses])


async def streamed(port: int, path: str, messages: Sequence[bytes]) -> tuple[str, bytes]:
    """Sends messages on one stream. Returns the outcome of the call and all bytes of the answers."""
    async with connected(port) as client:
        _, response = client.send(path, b"".join(map(grpc_message, messages)))
        return await outcome(response), response.body


async def open_raw(port: int, opening: bytes = OPENING) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects without a client of HTTP/2, and sends the first bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=ADDRESS)
    writer.write(opening)
    return reader, writer


async def discard(reader: asyncio.StreamReader) -> None:
    """Reads and forgets all that comes, until the server closes."""
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


async def close(writer: asyncio.StreamWriter) -> None:
    """Closes a connection at once, with all that it has not sent."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def flood(port: int, piece: Callable[[int], bytes], seconds: float, first: bytes = b"") -> int:
    """Sends pieces as fast as the server takes them, on a new connection whenever the server closes one.

    Args:
        port: port of the server.
        piece: returns the bytes of the piece with a number, which is 0 again on each connection.
        seconds: time to send.
        first: bytes before the first piece of a connection.

    Returns:
        The number of pieces.
    """
    sent = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        try:
            reader, writer = await open_raw(port, OPENING + first)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        reading = asyncio.create_task(discard(reader))
        with contextlib.suppress(OSError):
            number = 0
            while loop.time() < end and not reading.done():
                writer.write(piece(number))
                await asyncio.wait_for(writer.drain(), 5)
                await asyncio.sleep(0)
                number += 1
                sent += 1
        reading.cancel()
        await close(writer)
    return sent
