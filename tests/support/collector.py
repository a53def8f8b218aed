"""A stand-in for an OpenTelemetry collector: speaks the real protocol on a real port, and keeps all spans."""

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
    """Receives spans.

    Attributes:
        endpoint: address of the collector, in the form of OTEL_EXPORTER_OTLP_ENDPOINT.
        spans: all spans received so far.
        resources: attributes of the sender, one entry per batch.
    """

    def __init__(self, port: int):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self._received = threading.Condition()

    def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802
        with self._received:
            for batch in request.resource_spans:
                self.resources.append(attributes(batch.resource))
                self.spans += [span for scope in batch.scope_spans for span in scope.spans]
            self._received.notify_all()
        return pb.ExportTraceServiceResponse()

    def wait_for(self, count: int, timeout_seconds: float = 20) -> list[Span]:
        """Waits for `count` spans, and returns all spans in order of their start."""
        with self._received:
            assert self._received.wait_for(lambda: len(self.spans) >= count, timeout_seconds), self.spans
            return sorted(self.spans, key=lambda span: span.start_time_unix_nano)


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Runs a collector while the block lasts."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    collector = Collector(server.add_insecure_port("127.0.0.1:0"))
    pb_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def attributes(holder: Any) -> dict[str, str]:
    """Returns the attributes of a span or a resource, all as text."""
    return {each.key: str(getattr(each.value, each.value.WhichOneof("value"))) for each in holder.attributes}
