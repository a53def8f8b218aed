"""The metrics port, the log, the supervisor and the workers."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from functools import partial

import cv2
import numpy as np

from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.robustness.attacker import ADDRESS, DIGITS, call, close, connected, discard, outcome
from tests.robustness.case import ENDING, Case, Limits, flags
from tests.robustness.crops import then_stops
from tests.robustness.judge import MARK
from tests.robustness.model_files import TAKE_UP_SECONDS, state
from tests.robustness.processes import children, tree
from tests.robustness.target import Target
from tests.support.http2_client import grpc_message

_HELD_SECONDS = 6.0
_ONE = ("http2",)  # where the front makes no difference

_REQUESTS = (
    b"GET /healthz HTTP/1.0\r\n",
    b"GET /",
    b"POST /metrics HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\nX: " + b"a" * 100_000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"",
)
"""Beginnings of requests to the metrics port that never end."""

_ODD_REQUESTS = (
    b"GET /../../etc/passwd HTTP/1.0\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"PUT / HTTP/1.0\r\n\r\n",
    b"GET //[ HTTP/1.0\r\n\r\n",
    b"GET /\0 HTTP/1.0\r\n\r\n",
    b"GET /\x1b[2J\x1b[31m HTTP/1.0\r\n\r\n",
    b"GET /a\r" + MARK.encode() + b"\x0b HTTP/1.0\r\n\r\n",
    b"GET /%0a" + MARK.encode() + b" HTTP/1.0\r\n\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET /healthz\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.0\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text;version=a.b;escaping=\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\nAccept-Encoding: gzip;q=abc,,;;=\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\nAccept: a/b;q=;x=\xff\r\n\r\n",
)


async def _slow_scrapers(target: Target, count: int) -> Counter[str]:
    """Keeps so many connections to the metrics port that send a byte now and then. A new one replaces each that ends."""
    end = time.monotonic() + _HELD_SECONDS

    async def one(number: int) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", target.http_port, local_addr=ADDRESS)
                writer.write(_REQUESTS[number % len(_REQUESTS)])
                reading = asyncio.create_task(discard(reader))
                while time.monotonic() < end and not reading.done():
                    writer.write(b"a")
                    await asyncio.sleep(0.5)
                reading.cancel()
                await close(writer)
            await asyncio.sleep(0.05)

    await asyncio.gather(*[one(number) for number in range(count)])
    return Counter()


async def _odd_scrapes(target: Target) -> Counter[str]:
    """Sends requests that are no requests, and asks for the metrics from many connections at once."""

    async def ask(request: bytes) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.http_port, local_addr=ADDRESS)
            writer.write(request)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(discard(reader), 2)
            await close(writer)

    for request in _ODD_REQUESTS:
        await ask(request)
    await asyncio.gather(*[ask(b"GET /metrics HTTP/1.0\r\n\r\n") for _ in range(64)])
    return Counter()


# libjpeg warns of bytes before the end marker.
_DAMAGED = cv2.imencode(".jpg", np.full((28, 28), 255, np.uint8))[1].tobytes()[:-2] + bytes(100) + b"\xff\xd9"


async def _fill_the_log(target: Target) -> Counter[str]:
    """Makes calls that are logged, by the service and by libjpeg, until the pipe of the log must be full."""
    image = grpc_message(pb.RecognizeRequest(image=bytes(784)).SerializeToString())
    damaged = grpc_message(pb.RecognizeRequest(crop=_DAMAGED).SerializeToString())
    outcomes: Counter[str] = Counter()
    async with connected(target.port) as client:
        for _ in range(15):
            responses = [client.send(f"{DIGITS}/Recognize", one)[1] for one in (image, damaged) for _ in range(100)]
            outcomes += Counter([await outcome(response) for response in responses])
    await asyncio.sleep(1)
    return outcomes


async def _kill_the_supervisor(target: Target) -> Counter[str]:
    """Kills the supervisor, and starts another on the same ports at once, while the orphaned workers still run."""
    orphans = tree(target.pid)[1:]
    os.kill(target.pid, signal.SIGKILL)
    await asyncio.to_thread(target.process.wait)
    try:
        await asyncio.to_thread(target.start)
    except RuntimeError as error:
        return Counter([str(error)[-300:]])
    code = await call(target.port, f"{DIGITS}/Recognize", pb.RecognizeRequest(image=bytes(784)).SerializeToString())
    end = time.monotonic() + 30
    while (left := [pid for pid in orphans if tree(pid)]) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    return Counter([f"a call after the start: {code}", f"{len(left)} orphans left"])


async def _kill_everything(target: Target) -> Counter[str]:
    """Kills the supervisor and all workers, and starts the service again at once."""
    for pid in reversed(tree(target.pid)):
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(target.process.wait)
    await asyncio.to_thread(target.start)
    return Counter(["ready again"])


async def _kill_while_loading(target: Target) -> Counter[str]:
    """Kills the youngest process of the service again and again while versions load. The last version must serve at last."""
    supervisor = target.pid
    for version in range(501, 506):
        target.publish(version)
        await asyncio.sleep(0.2 * (version - 500))
        victims = tree(supervisor)[1:]
        with contextlib.suppress(ProcessLookupError):
            os.kill(max(victims), signal.SIGKILL)
    last = await state(target, 505, "READY", seconds=TAKE_UP_SECONDS)
    for version in range(501, 506):
        shutil.rmtree(target.models / "digits" / str(version))
    alive = "the supervisor lives" if tree(supervisor) else "the supervisor has ended"
    return Counter([f"the last version is {last[0]}", alive])


async def _kill_workers(target: Target) -> Counter[str]:
    """Kills a worker three times. Another must take its place each time."""
    for _ in range(3):
        victim = children(target.pid)[0]
        os.kill(victim, signal.SIGKILL)
        end = time.monotonic() + 30
        while (victim in (now := children(target.pid)) or len(now) < 2) and time.monotonic() < end:
            await asyncio.sleep(0.1)
    while target.get("readyz") != "200" and time.monotonic() < end:
        await asyncio.sleep(0.1)
    return Counter([f"{len(children(target.pid))} workers, readyz {target.get('readyz')}"])


CASES = (
    Case("100 slow connections to the metrics port", partial(_slow_scrapers, count=100), fronts=_ONE),
    Case(
        "400 slow connections to the metrics port",
        partial(_slow_scrapers, count=400),
        flags=flags(workers=2),
        fronts=_ONE,
        limits=Limits(500),
    ),
    Case("odd requests to the metrics port", _odd_scrapes, fronts=_ONE, flags=flags("--log-level", "debug")),
    Case("a log that nobody reads", _fill_the_log, frozenset({"OK"}), flags=flags("--log-level", "debug"), log_read=False),
    Case(
        "the supervisor killed",
        _kill_the_supervisor,
        frozenset({"a call after the start: OK", "0 orphans left"}),
        flags=flags(workers=2),
        limits=ENDING,
    ),
    Case("all processes killed", _kill_everything, frozenset({"ready again"}), _ONE, flags=flags(workers=2), limits=ENDING),
    Case(
        "processes killed while a version loads",
        _kill_while_loading,
        frozenset({"the last version is READY", "the supervisor lives"}),
        flags=flags(workers=2),
        fronts=_ONE,
        limits=ENDING,
    ),
    Case("workers killed", _kill_workers, frozenset({"2 workers, readyz 200"}), _ONE, flags=flags(workers=2), limits=ENDING),
    Case("SIGTERM while crops are decoded", then_stops, frozenset({"exit 0"}), limits=ENDING),
)
