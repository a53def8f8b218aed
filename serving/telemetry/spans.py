"""The spans of a call: one of the server's, and below it one for its time in the queue and one for the model.

Only tracing.py imports this, and only when traces are asked for. Names and attributes are OpenTelemetry's semantic
conventions for RPC, and "digits." before those of our own.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable

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
    """Begins the span of each call, and sends those that are sampled off, in batches, from a thread of its own.

    Sampling, resource, limits and batches are as OpenTelemetry's environment variables say. A collector that is not
    there costs spans and nothing else.
    """

    def __init__(self, exporters: set[str]):
        """Exports to each of `exporters`, "otlp" or "console"."""
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
        """The span of a call of `service`'s `method`, below its caller's when the call's metadata name that one."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            f"{service}/{method}",
            propagate.extract(carrier),
            SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        return CallSpan(self._tracer, span)

    def stop(self, timeout_seconds: float) -> None:
        """Sends off what has ended so far, and stops; spans that can't be sent in `timeout_seconds` are lost."""
        # In a thread, as OpenTelemetry itself waits for up to half a minute, without a word that would shorten it.
        flushing = threading.Thread(target=self._provider.shutdown, name="flush spans", daemon=True)
        flushing.start()
        flushing.join(timeout_seconds)
        if flushing.is_alive():
            message = f"not all spans could be sent within {timeout_seconds:g} s; the rest are lost"
            log_event(log, logging.WARNING, "spans_lost", message)
            for exporter in self._exporters:
                exporter.shutdown()


class CallSpan:
    """The span of one call.

    Attributes:
        trace_id: of the trace that it is in, 32 hexadecimal digits.
        span_id: its own, 16 hexadecimal digits.
        sampled: whether the trace is kept.
        exemplar: what a metric says of the trace; None when it is not kept.
    """

    def __init__(self, tracer: trace.Tracer, span: trace.Span):
        self._tracer = tracer
        self._span = span
        self._images = 0
        self._epoch = time.time_ns() - time.monotonic_ns()  # anew for each call, as clocks are put right
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id)
        self.span_id = trace.format_span_id(context.span_id)
        self.sampled = context.trace_flags.sampled
        self.exemplar = {"trace_id": self.trace_id} if self.sampled else None

    def answered(self, arrived: float, started: float, ended: float, *, model: str, version: str, images: int) -> None:
        """Adds the spans of images that a model has read; the three times are on the clock of time.monotonic.

        Args:
            arrived: when they came into the queue.
            started: when the first of them went into a run of the model.
            ended: when the last of them came out of one.
            model: the model's name.
            version: the model's version.
            images: how many they are.
        """
        if not self._span.is_recording():
            return
        attributes: dict[str, str | int] = {"digits.model": model, "digits.version": version, "digits.images": images}
        self._images += images  # of all requests of a stream
        self._span.set_attributes({**attributes, "digits.images": self._images})
        within = trace.set_span_in_context(self._span)
        for name, start, end in (("queue", arrived, started), ("inference", started, ended)):
            span = self._tracer.start_span(name, within, attributes=attributes, start_time=self._at(start))
            span.end(self._at(end))

    def end(self, code: Code) -> None:
        """Ends it, with the status that the call was answered with."""
        self._span.set_attribute("rpc.grpc.status_code", int(code))
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR, code.name)
        self._span.end()

    def _at(self, seconds: float) -> int:
        """A time of time.monotonic as nanoseconds since 1970."""
        return self._epoch + round(seconds * 1e9)
