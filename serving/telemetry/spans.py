"""The span of a call, with child spans for framing its crops, waiting in the queue, and running the model.

Only tracing.py imports this module, and only if tracing is on. Names and attributes follow OpenTelemetry's semantic
conventions for RPC. The service's own attributes begin with "digits.".
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from serving.errors import Code
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

# The codes that are the server's fault. Source: semantic conventions for gRPC, "gRPC Status".
_FAULTS = {
    *(Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS),
}


class Tracing:
    """Begins the span of each call, and exports the sampled spans in batches from a thread of its own.

    OpenTelemetry's environment variables set sampling, resource, limits and batches. If the collector is absent, spans are
    lost, and calls are not delayed.
    """

    def __init__(self, exporters: set[str]):
        """Exports to each of `exporters`: "otlp", "console" or both."""
        resource = Resource.create({"process.pid": os.getpid()})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # OpenTelemetry's default
            resource = resource.merge(Resource({"service.name": "postal-digits"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporters: list[SpanExporter] = []
        if "otlp" in exporters:
            self._exporters.append(OTLPSpanExporter())
        if "console" in exporters:
            self._exporters.append(ConsoleSpanExporter())
        for exporter in self._exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("serving")

    def begin(self, service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> "CallSpan":
        """Begins the span of a call.

        Args:
            service: full name of the gRPC service.
            method: name of the method.
            metadata: metadata of the call. If it names the caller's span (traceparent), that span becomes the parent.
        """
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{service}/{method}",
            propagate.extract(carrier),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return CallSpan(self._tracer, span)

    def stop(self, timeout_seconds: float) -> None:
        """Exports the ended spans, then stops. Spans that can't be exported within `timeout_seconds` are lost."""
        # In a thread: OpenTelemetry itself waits up to half a minute, and offers no shorter timeout.
        flushing = threading.Thread(target=self._provider.shutdown, name="flush spans", daemon=True)
        flushing.start()
        flushing.join(timeout_seconds)
        if flushing.is_alive():
            message = f"not all spans could be exported within {timeout_seconds:g} s; the rest are lost"
            log_event(log, logging.WARNING, "spans_lost", message)
            for exporter in self._exporters:
                exporter.shutdown()


class CallSpan:
    """The span of one call.

    Attributes:
        trace_id: id of the trace that the span belongs to, 32 hexadecimal digits.
        span_id: id of the span, 16 hexadecimal digits.
        sampled: True if the trace is kept.
        exemplar: exemplar that links a metric to the trace; None if the trace is not kept.
    """

    def __init__(self, tracer: trace.Tracer, span: trace.Span):
        self._tracer = tracer
        self._span = span
        self._images = 0
        self._epoch = time.time_ns() - time.monotonic_ns()  # per call, because the system clock may be adjusted
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id)
        self.span_id = trace.format_span_id(context.span_id)
        self.sampled = context.trace_flags.sampled
        self.exemplar = {"trace_id": self.trace_id} if self.sampled else None

    def framed(self, started: float, ended: float, crops: int) -> None:
        """Adds the child span "framing". Times are on the clock of time.monotonic.

        Args:
            started: when the crops began to wait for their turn.
            ended: when the last crop was framed.
            crops: number of crops.
        """
        if self._span.is_recording():
            self._add_child("framing", started, ended, {"digits.crops": crops})

    def answered(self, arrived: float, started: float, ended: float, *, model: str, version: str, images: int) -> None:
        """Adds the child spans "queue" and "inference". Times are on the clock of time.monotonic.

        Args:
            arrived: when the images entered the queue.
            started: when the run with the first image began.
            ended: when the run with the last image ended.
            model: the model's name.
            version: the model's version.
            images: number of images.
        """
        if not self._span.is_recording():
            return
        attributes: dict[str, str | int] = {"digits.model": model, "digits.version": version, "digits.images": images}
        self._images += images  # of all requests of a stream
        self._span.set_attributes({**attributes, "digits.images": self._images})
        self._add_child("queue", arrived, started, attributes)
        self._add_child("inference", started, ended, attributes)

    def end(self, code: Code) -> None:
        """Ends the span with the status code of the call."""
        self._span.set_attribute("rpc.grpc.status_code", int(code))
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR, code.name)
        self._span.end()

    def _add_child(self, name: str, started: float, ended: float, attributes: Mapping[str, str | int]) -> None:
        parent = trace.set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=self._unix_nanoseconds(started))
        span.end(self._unix_nanoseconds(ended))

    def _unix_nanoseconds(self, seconds: float) -> int:
        """Converts a time of time.monotonic to nanoseconds since 1970."""
        return self._epoch + round(seconds * 1e9)
