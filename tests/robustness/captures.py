"""The database of captured images while workers die, and while another process locks it."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections import Counter
from random import Random

from serving.answers.recognition_id import RecognitionIds
from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.robustness.attacker import DIGITS, connected, outcome
from tests.robustness.case import ENDING, Case, Limits, flags
from tests.robustness.processes import children
from tests.robustness.target import Target
from tests.support.http2_client import grpc_message

_FILE = "captured.db"  # in the directory of the service
_NOISE = Random(1).randbytes(784)  # noqa: S311 - no secret
_KILLS = 3
_LOCKED_SECONDS = 4.0


async def _captured(target: Target, count: int) -> list[str]:
    """Sends images that are rejected. Returns the ids of the answers that say that their image is kept."""
    ids = []
    message = grpc_message(pb.RecognizeRequest(image=_NOISE).SerializeToString())
    with contextlib.suppress(OSError):
        async with connected(target.port) as client:
            for _ in range(count):
                response = client.send(f"{DIGITS}/Recognize", message)[1]
                if await outcome(response) != "OK":
                    break
                answer = pb.RecognizeResponse.FromString(response.body[5:])
                ids += [answer.recognition_id] if answer.captured else []
    return ids


async def _kill_while_capturing(target: Target) -> Counter[str]:
    """Kills workers while images are captured. Every image that an answer calls captured must be in the database."""
    ids: list[str] = []

    async def send(killed: asyncio.Event) -> None:
        while not killed.is_set():
            ids.extend(await _captured(target, 100))
            await asyncio.sleep(0.05)

    killed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(send(killed))
        for _ in range(_KILLS):
            await asyncio.sleep(1)
            os.kill(children(target.pid)[0], signal.SIGKILL)
        await asyncio.sleep(1)
        killed.set()
    with contextlib.closing(sqlite3.connect(target.directory / _FILE)) as database:
        stored = {row[0] for row in database.execute("select answer from captured_images")}
    lost = [one for one in ids if RecognitionIds().parse(one).nonce.hex() not in stored]
    return Counter({"images captured": bool(ids), "captured images lost": len(lost)}) + Counter()


async def _lock(target: Target) -> Counter[str]:
    """Locks the database for a while. Calls go on, and images are captured again afterwards."""
    with contextlib.closing(sqlite3.connect(target.directory / _FILE, isolation_level=None)) as database:
        database.execute("begin exclusive")
        await _captured(target, 20)
        await asyncio.sleep(_LOCKED_SECONDS)
        database.execute("rollback")
    end = asyncio.get_running_loop().time() + 20
    while not (ids := await _captured(target, 1)) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.2)
    return Counter(["captured again" if ids else "not captured again"])


_FLAGS = flags("--capture", f"sqlite:///{_FILE}", workers=2)

CASES = (
    Case("the capture database locked", _lock, frozenset({"captured again"}), ("http2",), _FLAGS, Limits(500.0)),
    Case(
        "workers killed while images are captured",
        _kill_while_capturing,
        frozenset({"images captured"}),
        ("http2",),
        _FLAGS,
        ENDING,
    ),
)
