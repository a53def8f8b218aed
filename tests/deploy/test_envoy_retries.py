import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1 import digit_service_pb2_grpc as stubs
from tests.deploy.envoy import PLAIN, Ports, envoy, program
from tests.deploy.load import until
from tests.deploy.names import name_server
from tests.support.calls import TIMEOUT

pytestmark = pytest.mark.deploy

CODE = grpc.StatusCode


class Refusing(stubs.DigitServiceServicer):
    """Refuses every call with `code`, and counts the calls.

    With DEADLINE_EXCEEDED it holds each call until the call has ended.
    """

    def __init__(self) -> None:
        self.code = CODE.UNAVAILABLE
        self.calls: Counter[str] = Counter()
        self.remaining: float | None = None  # seconds to the deadline of the last call
        self.ended = threading.Event()  # a held call has ended

    def _refuse(self, method: str, context: grpc.ServicerContext) -> None:
        self.calls[method] += 1
        self.remaining = context.time_remaining()
        if self.code is CODE.DEADLINE_EXCEEDED:
            context.add_callback(self.ended.set)
            self.ended.wait(TIMEOUT)
        context.abort(self.code, "refused by the test")

    def Recognize(self, request: pb.RecognizeRequest, context: grpc.ServicerContext) -> None:  # noqa: N802 - gRPC's names
        self._refuse("Recognize", context)

    def ReportTruth(self, request: pb.ReportTruthRequest, context: grpc.ServicerContext) -> None:  # noqa: N802
        self._refuse("ReportTruth", context)


class Ready(BaseHTTPRequestHandler):
    """Answers 200 for every path."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[tuple[Refusing, stubs.DigitServiceStub]]:
    """Starts a refusing replica, and opens a stub without retries that calls it through Envoy."""
    program()
    ports = Ports.free()
    servicer = Refusing()
    server = grpc.server(ThreadPoolExecutor(4))
    stubs.add_DigitServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.2:{ports.replica_grpc}")
    server.start()
    probes = ThreadingHTTPServer(("127.0.0.2", ports.replica_metrics), Ready)
    threading.Thread(target=probes.serve_forever, args=(0.05,), daemon=True).start()
    with (
        name_server("127.0.0.2") as names,
        envoy(PLAIN, tmp_path, ports, names.port) as started,
        grpc.insecure_channel(started.address, [("grpc.enable_retries", 0)]) as channel,
    ):
        until(lambda: started.replicas() == {"127.0.0.2": True})
        yield servicer, stubs.DigitServiceStub(channel)
    probes.shutdown()
    probes.server_close()
    server.stop(None).wait(TIMEOUT)


def test_envoy_retries_only_reading_methods_and_only_unavailable(
    refusing: tuple[Refusing, stubs.DigitServiceStub],
) -> None:
    servicer, stub = refusing
    calls: dict[str, Callable[[], object]] = {
        "Recognize": lambda: stub.Recognize(pb.RecognizeRequest(), timeout=TIMEOUT),
        "ReportTruth": lambda: stub.ReportTruth(pb.ReportTruthRequest(), timeout=TIMEOUT),
    }
    for code in (CODE.UNAVAILABLE, CODE.RESOURCE_EXHAUSTED, CODE.CANCELLED, CODE.INTERNAL):
        servicer.code = code
        servicer.calls.clear()
        for call in calls.values():
            with pytest.raises(grpc.RpcError) as refusal:
                call()
            assert refusal.value.code() is code
        assert servicer.calls == {"Recognize": 4 if code is CODE.UNAVAILABLE else 1, "ReportTruth": 1}


def test_a_callers_deadline_reaches_the_replica_and_ends_the_call(
    refusing: tuple[Refusing, stubs.DigitServiceStub],
) -> None:
    servicer, stub = refusing
    servicer.code = CODE.INTERNAL
    for seconds in (TIMEOUT, 2 * TIMEOUT):
        with pytest.raises(grpc.RpcError):
            stub.Recognize(pb.RecognizeRequest(), timeout=seconds)
        assert servicer.remaining is not None
        assert seconds - TIMEOUT < servicer.remaining < seconds + 1  # gRPC rounds it up

    servicer.code = CODE.DEADLINE_EXCEEDED
    with pytest.raises(grpc.RpcError) as refusal:
        stub.Recognize(pb.RecognizeRequest(), timeout=2)
    assert refusal.value.code() is CODE.DEADLINE_EXCEEDED
    assert servicer.ended.wait(TIMEOUT)
