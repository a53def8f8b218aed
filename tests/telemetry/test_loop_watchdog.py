"""The watchdog of the event loop, and what it finds in a server that takes the heaviest messages."""

import asyncio
import base64
import gzip
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pytest

from serving.api import digits, open_inference, side_thread
from serving.api.packed import pack_message
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as oip
from serving.process.server import Server
from serving.telemetry import loop_watchdog
from serving.telemetry.loop_watchdog import Held, LogHeld, LoopWatchdog
from tests.support.calls import TIMEOUT
from tests.support.held_loop import loop_stays_free
from tests.support.http2_client import http2_client
from tests.support.metrics import value


def sleep_long() -> None:
    time.sleep(0.1)


def work_long() -> None:
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("hold", [sleep_long, work_long])
async def test_the_watchdog_names_what_held_the_loop(hold: Callable[[], None]) -> None:
    held: list[Held] = []
    with LoopWatchdog(held.append):
        await asyncio.sleep(0.02)
        hold()
        async with asyncio.timeout(TIMEOUT):
            while not any(hold.__name__ in turn.stack for turn in held):
                await asyncio.sleep(0.001)


async def test_a_test_fails_where_the_loop_worked_but_not_where_it_paused() -> None:
    with loop_stays_free():
        await asyncio.sleep(0.02)
        sleep_long()
        await asyncio.sleep(0.02)

    async def work() -> None:
        with loop_stays_free() as held:
            await asyncio.sleep(0.02)
            work_long()
            async with asyncio.timeout(TIMEOUT):
                while not held:
                    await asyncio.sleep(0.001)

    with pytest.raises(AssertionError, match="work_long"):
        await work()


def test_a_loop_that_is_held_all_the_time_is_logged_once_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "serving")
    report = LogHeld()
    for _ in range(5):
        report(Held(0.0304, 0.01, "a.py:1 work"))
    monkeypatch.setattr(loop_watchdog, "_LOG_SECONDS", -1.0)
    report._next = 0.0
    report(Held(0.02, 0.02, "b.py:2 play"))
    assert [record.getMessage() for record in caplog.records] == [
        "the event loop was held for 30 ms, 10 ms of them at work: a.py:1 work",
        "the event loop was held for 20 ms, 20 ms of them at work: b.py:2 play",
    ]
    assert [record.__dict__["fields"]["left_out"] for record in caplog.records] == [0, 4]


LARGEST = 15_600_000
INFER, TRUTH, BATCH = (
    f"/{name}"
    for name in (f"{open_inference.NAME}/ModelInfer", f"{digits.NAME}/ReportTruth", f"{digits.NAME}/RecognizeBatch")
)


def typed(count: int, ink: int) -> bytes:
    request = oip.ModelInferRequest()
    request.inputs.add(name="images", datatype="UINT8", shape=[count, 28, 28]).contents.uint_contents.extend(
        [ink] * 784 * count
    )
    return request.SerializeToString()


def truths(count: int) -> bytes:
    return pb.ReportTruthRequest(
        truths=[pb.Truth(recognition_id="A" * 80, source=pb.TRUTH_SOURCE_KEYING, values={0: "7"})] * count
    ).SerializeToString()


HEAVY: dict[str, tuple[str, Callable[[], bytes], set[str]]] = {
    "empty inputs": (INFER, lambda: b"\x2a\x00" * (LARGEST // 2), {"INVALID_ARGUMENT"}),
    "parameters": (INFER, lambda: b"\x22\x00" * (LARGEST // 2), {"INVALID_ARGUMENT"}),
    "unknown fields": (INFER, lambda: b"\x78\x01" * (LARGEST // 2), {"INVALID_ARGUMENT"}),
    "a long shape": (INFER, lambda: pack_message(5, pack_message(3, b"\x01" * 15_000_000)), {"INVALID_ARGUMENT"}),
    "typed pixels": (INFER, lambda: typed(10_000, 200), {"OK", "RESOURCE_EXHAUSTED"}),
    "typed pixels of a wrong shape": (INFER, lambda: typed(10_000, 1).replace(b"UINT8", b"FP32x"), {"INVALID_ARGUMENT"}),
    "empty truths": (TRUTH, lambda: b"\x0a\x00" * 2_000_000, {"INVALID_ARGUMENT"}),
    "truths": (TRUTH, lambda: truths(10_000), {"INVALID_ARGUMENT"}),
    "empty crops": (BATCH, lambda: b"\x22\x00" * (LARGEST // 2), {"INVALID_ARGUMENT"}),
    "images": (BATCH, lambda: pb.RecognizeBatchRequest(images=bytes(7_840_000)).SerializeToString(), {"OK"}),
    "a long key": (BATCH, lambda: pb.RecognizeBatchRequest(key="k" * 15_000_000).SerializeToString(), {"INVALID_ARGUMENT"}),
}


@pytest.mark.parametrize("kind", HEAVY)
async def test_a_heavy_message_does_not_hold_the_loop(server: Server, kind: str) -> None:
    path, make, expected = HEAVY[kind]
    message = make()

    def send() -> str:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call: Any = channel.unary_unary(path)
            try:
                call(message, timeout=TIMEOUT)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

    with loop_stays_free():
        assert await asyncio.to_thread(send) in expected


@pytest.mark.parametrize(("waiting", "code"), [(64 << 10, "INVALID_ARGUMENT"), (0, "RESOURCE_EXHAUSTED")])
@pytest.mark.parametrize("path", [f"/{digits.NAME}/RecognizeStream", f"/{open_inference.NAME}/ModelStreamInfer"])
async def test_a_heavy_message_ends_its_stream_unparsed(
    server: Server, path: str, waiting: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_thread, "_MAX_WAITING_KIB", waiting)
    message = b"\x22\x00" * (LARGEST // 2)

    def send() -> str:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call: Any = channel.stream_stream(path)
            try:
                return str([*call(iter([message]), timeout=TIMEOUT)])
            except grpc.RpcError as error:
                return str(error.code().name)

    with loop_stays_free():
        assert await asyncio.to_thread(send) == code
    assert value(server.metrics.registry, "digits_rejected_requests_total") == 1


def inflated(kind: str) -> tuple[str, bytes, str]:
    """Returns a body that is large once it is decoded: its media type, the body, and the status of HTTP to expect."""
    batch = pb.RecognizeBatchRequest(images=bytes(7_840_000)).SerializeToString()
    if kind == "gzip":
        packed = gzip.compress(batch)
        return "application/grpc", b"\1" + len(packed).to_bytes(4) + packed, "0"
    if kind == "base64":
        return "application/grpc-web-text", base64.b64encode(b"\0" + len(batch).to_bytes(4) + batch), "200"
    if kind == "an image in JSON":
        return "application/json", json.dumps({"images": base64.b64encode(bytes(784 * 4000)).decode()}).encode(), "200"
    return "application/json", b'{"x": [%s0]}' % (b"{}," * 49_000), "400"


@pytest.mark.parametrize("front", ["http2"], indirect=True)
@pytest.mark.parametrize("kind", ["gzip", "base64", "an image in JSON", "many values in JSON"])
async def test_a_body_that_must_be_decoded_does_not_hold_the_loop(server: Server, kind: str) -> None:
    content_type, body, expected = inflated(kind)

    async def send() -> Mapping[str, str]:
        async with http2_client(server.grpc_port) as client:
            encoding = {"grpc_encoding": "gzip"} if kind == "gzip" else {}
            response = await client.call(BATCH, body, content_type=content_type, **encoding)
            return response.headers

    with loop_stays_free():
        headers = await asyncio.to_thread(lambda: asyncio.run(send()))
    assert headers.get("grpc-status", headers[":status"]) == expected
