"""A stand-in for an OpenTelemetry collector: the real protocol on a real port, and all the spans that came."""

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(pb_grpc.TraceServiceServicer):
    """What takes the spans.

    Attributes:
        endpoint: where, as OTEL_EXPORTER_OTLP_ENDPOINT wants it.
        spans: all that came so far.
        resources: what each batch said of who sent it.
    """

    def __init__(self, port: int):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self._came = threading.Condition()

    def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802
        with self._came:
            for batch in request.resource_spans:
                self.resources.append(attributes(batch.resource))
                self.spans += [span for scope in batch.scope_spans for span in scope.spans]
            self._came.notify_all()
        return pb.ExportTraceServiceResponse()

    def wait_for(self, count: int, timeout_seconds: float = 20) -> list[Span]:
        """The spans, once there are so many; in order of their start."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.spans) >= count, timeout_seconds), self.spans
            return sorted(self.spans, key=lambda span: span.start_time_unix_nano)


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector that listens while the block lasts."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    taker = Collector(server.add_insecure_port("127.0.0.1:0"))
    pb_grpc.add_TraceServiceServicer_to_server(taker, server)  # type: ignore[no-untyped-call]  # generated
    server.start()
    try:
        yield taker
    finally:
        server.stop(None).wait()


def attributes(holder: Any) -> dict[str, str]:
    """The attributes of a span or a resource, all as text."""
    return {each.key: str(getattr(each.value, each.value.WhichOneof("value"))) for each in holder.attributes}
