import logging
import re
import time
import urllib.request

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import Code
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from serving.telemetry import tracing
from tests.support.calls import TIMEOUT
from tests.support.collector import Collector, attributes
from tests.support.servers import StartServer
from tests.support.service import launch
from tests.support.traced_server import serve_a_seven

pytestmark = pytest.mark.usefixtures("environment")

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SERVICE = "digits.v1.DigitService"


def test_a_call_has_a_span_with_children_for_queue_and_inference(collector: Collector) -> None:
    traces = tracing.start()
    assert traces is not None
    before = time.time_ns()
    span = traces.begin(SERVICE, "Recognize", [("traceparent", f"00-{TRACE}-{CALLER}-01"), ("odd-bin", b"\xff")])
    arrived = time.monotonic()
    span.answered(arrived, arrived + 0.25, arrived + 1, model="digits", version="7", images=3)
    span.end(Code.OK)
    after = time.time_ns()
    traces.stop(TIMEOUT)

    call, queue, inference = collector.wait_for(3)
    assert (call.name, call.kind, call.trace_id.hex(), call.parent_span_id.hex()) == (
        f"{SERVICE}/Recognize",
        call.SPAN_KIND_SERVER,
        TRACE,
        CALLER,
    )
    assert (span.trace_id, span.span_id, span.sampled) == (TRACE, call.span_id.hex(), True)
    answered = {"digits.model": "digits", "digits.version": "7", "digits.images": "3"}
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Recognize",
        "rpc.grpc.status_code": "0",
        **answered,
    }
    assert call.status.code == call.status.STATUS_CODE_UNSET
    assert before <= call.start_time_unix_nano <= call.end_time_unix_nano <= after
    for child, name, seconds in ((queue, "queue", 0.25), (inference, "inference", 0.75)):
        assert (child.name, child.trace_id, child.parent_span_id) == (name, call.trace_id, call.span_id)
        assert attributes(child) == answered
        assert child.end_time_unix_nano - child.start_time_unix_nano == pytest.approx(seconds * 1e9, abs=1000)
    assert queue.end_time_unix_nano == inference.start_time_unix_nano
    assert before <= queue.start_time_unix_nano <= after


def test_framing_is_a_child_span_with_the_number_of_crops(collector: Collector) -> None:
    traces = tracing.start()
    assert traces is not None
    before = time.time_ns()
    span = traces.begin(SERVICE, "ReadField", [])
    started = time.monotonic()
    span.framed(started, started + 0.125, crops=5)
    span.end(Code.OK)
    traces.stop(TIMEOUT)
    call, framing = collector.wait_for(2)
    assert (framing.name, framing.trace_id, framing.parent_span_id) == ("framing", call.trace_id, call.span_id)
    assert attributes(framing) == {"digits.crops": "5"}
    assert framing.end_time_unix_nano - framing.start_time_unix_nano == pytest.approx(0.125e9, abs=1000)
    assert before <= framing.start_time_unix_nano <= time.time_ns()


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (Code.INTERNAL, True),
        (Code.UNAVAILABLE, True),
        (Code.INVALID_ARGUMENT, False),
        (Code.RESOURCE_EXHAUSTED, False),
    ],
)
def test_a_span_is_an_error_when_the_server_is_at_fault(collector: Collector, code: Code, fault: bool) -> None:
    traces = tracing.start()
    assert traces is not None
    traces.begin(SERVICE, "Recognize", []).end(code)
    traces.stop(TIMEOUT)
    (call,) = collector.wait_for(1)
    assert attributes(call)["rpc.grpc.status_code"] == str(int(code))
    assert (call.status.code == call.status.STATUS_CODE_ERROR) is fault
    assert not call.parent_span_id


def test_a_call_that_its_caller_does_not_sample_is_not_exported(collector: Collector) -> None:
    traces = tracing.start()
    assert traces is not None
    unsampled = traces.begin(SERVICE, "Recognize", [("traceparent", f"00-{TRACE}-{CALLER}-00")])
    unsampled.framed(1, 2, crops=1)
    unsampled.answered(1, 2, 3, model="digits", version="7", images=1)
    unsampled.end(Code.OK)
    traces.begin(SERVICE, "RecognizeBatch", []).end(Code.OK)
    traces.stop(TIMEOUT)
    assert (unsampled.trace_id, unsampled.sampled) == (TRACE, False)
    assert [span.name for span in collector.wait_for(1)] == [f"{SERVICE}/RecognizeBatch"]


def test_an_absent_collector_delays_neither_calls_nor_shutdown(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    traces = tracing.start()
    assert traces is not None
    with caplog.at_level(logging.WARNING, "serving"):
        for _ in range(5000):  # more than the exporter's queue holds
            traces.begin(SERVICE, "Recognize", []).end(Code.OK)
        start = time.monotonic()
        traces.stop(0.5)
    assert time.monotonic() - start < TIMEOUT / 2
    assert "not all spans could be exported within 0.5 s" in caplog.text


def scrape(server: Server, accept: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{server.metrics_port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as page:
        return str(page.read(), "utf-8")


async def test_a_call_is_traced_to_the_model_and_linked_from_its_metrics(
    collector: Collector, start_server: StartServer, images: NDArray[np.uint8]
) -> None:
    server = await start_server()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        metadata = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)
        request = pb.RecognizeBatchRequest(images=images[:5].tobytes())
        await stub.RecognizeBatch(request, timeout=TIMEOUT, metadata=metadata)
        unsampled = (("traceparent", f"00-{TRACE[::-1]}-{CALLER}-00"),)
        await stub.Recognize(pb.RecognizeRequest(image=images[0].tobytes()), timeout=TIMEOUT, metadata=unsampled)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.RecognizeBatch(pb.RecognizeBatchRequest(), timeout=TIMEOUT)
    text = scrape(server, "application/openmetrics-text")
    assert re.search(rf'request_seconds_bucket{{le="[^"]+",method="RecognizeBatch"}} \S+ # {{trace_id="{TRACE}"}} ', text)
    assert TRACE[::-1] not in text
    assert TRACE not in scrape(server, "text/plain")
    await server.stop(drain_seconds=0, grace_seconds=TIMEOUT)

    call, queue, inference, refused = collector.wait_for(4)
    assert len(collector.spans) == 4
    assert (call.name, call.trace_id.hex(), call.parent_span_id.hex()) == (f"{SERVICE}/RecognizeBatch", TRACE, CALLER)
    assert attributes(call)["digits.images"] == "5"
    assert [span.name for span in (queue, inference)] == ["queue", "inference"]
    assert {span.parent_span_id for span in (queue, inference)} == {call.span_id}
    assert call.start_time_unix_nano <= queue.start_time_unix_nano
    assert inference.end_time_unix_nano <= call.end_time_unix_nano
    assert attributes(refused)["rpc.grpc.status_code"] == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])


async def test_a_stream_is_one_span_with_two_children_per_request(
    collector: Collector, start_server: StartServer, images: NDArray[np.uint8]
) -> None:
    server = await start_server()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        requests = [
            pb.RecognizeStreamRequest(id=n, request=pb.RecognizeRequest(image=images[n].tobytes())) for n in range(3)
        ]
        answers = [answer async for answer in DigitServiceStub(channel).RecognizeStream(requests, timeout=TIMEOUT)]
    assert len(answers) == 3
    await server.stop(drain_seconds=0, grace_seconds=TIMEOUT)
    spans = collector.wait_for(7)
    (stream,) = (span for span in spans if span.name == f"{SERVICE}/RecognizeStream")
    assert sorted(span.name for span in spans if span.parent_span_id == stream.span_id) == ["inference"] * 3 + ["queue"] * 3
    assert attributes(stream)["digits.images"] == "3"


def test_a_traced_call_has_its_trace_id_in_the_log(collector: Collector) -> None:
    flags = ("--log-level", "debug", "--drain-seconds", "0")
    with launch(*flags, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint) as process:
        log = serve_a_seven(process)
    (call,) = (span for span in collector.wait_for(3) if span.name == f"{SERVICE}/Recognize")
    assert f"trace_id={call.trace_id.hex()} span_id={call.span_id.hex()}" in log
