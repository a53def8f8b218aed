"""Bulk work of one client beside the single images of another. Both clients keep the protocol."""

import asyncio
from collections import Counter
from functools import partial

from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.robustness.attacker import DIGITS, connected, outcome
from tests.robustness.case import BOTH, Case
from tests.robustness.target import Target
from tests.support.http2_client import grpc_message
from tests.support.service import ROOT

_SECONDS = 3.0
_CONNECTIONS = 4
_ANSWERED = frozenset({"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})


async def _closed_loop(target: Target, path: str, message: bytes, at_once: int) -> Counter[str]:
    """Keeps so many calls open all the time, on a few connections. Refused calls come again after a pause."""
    ended: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    end = loop.time() + _SECONDS
    framed = grpc_message(message)

    async def client(callers: int) -> None:
        async with connected(target.port) as connection:

            async def caller() -> None:
                while loop.time() < end:
                    code = await outcome(connection.send(path, framed, grpc_timeout="15S")[1])
                    ended[code] += 1
                    if code != "OK":
                        await asyncio.sleep(0.05)

            await asyncio.gather(*[caller() for _ in range(callers)])

    await asyncio.gather(*[client(at_once // _CONNECTIONS) for _ in range(_CONNECTIONS)])
    return ended


def _bulk(images: int, at_once: int, fronts: tuple[str, ...] = BOTH) -> Case:
    message = pb.RecognizeBatchRequest(images=bytes(784) * images).SerializeToString()
    attack = partial(_closed_loop, path=f"{DIGITS}/RecognizeBatch", message=message, at_once=at_once)
    return Case(f"{at_once} batches of {images} images at once", attack, _ANSWERED, fronts)


def _of_crops() -> bytes:
    crop = (ROOT / "serving" / "samples" / "photo.jpg").read_bytes()
    return pb.RecognizeBatchRequest(crops=[crop] * min(200, 3_500_000 // len(crop))).SerializeToString()


CASES = (
    _bulk(512, 8, ("http2",)),
    _bulk(512, 64),
    _bulk(5000, 8, ("http2",)),
    Case(
        "16 batches of 200 crops at once",
        partial(_closed_loop, path=f"{DIGITS}/RecognizeBatch", message=_of_crops(), at_once=16),
        _ANSWERED,
    ),
    Case(
        "512 single images at once",
        partial(
            _closed_loop,
            path=f"{DIGITS}/Recognize",
            message=pb.RecognizeRequest(image=bytes(784)).SerializeToString(),
            at_once=512,
        ),
        _ANSWERED,
        ("http2",),
    ),
)
