"""Where gRPC ends: deadlines come in, errors go out as status codes, and every request is counted once.

So is a stream that is refused, or ended because the server stops: whoever looks for errors is to find those too. But for
calls that gRPC refuses before it hands them over, such as a message over the size limit: it tells nobody of them.
"""

import asyncio
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from serving import errors
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import InvalidRequest, RequestError, Stopping, TooBusy, Unauthenticated
from serving.security.token_file import Role
from serving.security.tokens import Client, TokenAuthenticator
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics
from serving.transport.stream import Stream

if TYPE_CHECKING:
    from serving.telemetry.spans import Tracing

STATUS: dict[type[RequestError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.ModelNotReady: grpc.StatusCode.UNAVAILABLE,
    errors.LoadFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TruthNotStored: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Stopping: grpc.StatusCode.UNAVAILABLE,
    errors.InferenceFailed: grpc.StatusCode.INTERNAL,
    errors.Internal: grpc.StatusCode.INTERNAL,
}

# Of a message to a caller: it travels in a header, and gRPC ends a call whose headers are too large with another code.
_DETAILS_CHARACTERS = 1000

_CANCELLED = "cancelled"  # beside the reasons of errors, why a request gets no answer

# A caller whose deadline passes hangs up, and its hanging up arrives a little before the deadline does here.
_DEADLINE_SLACK_SECONDS = 0.01

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler = grpc.RpcMethodHandler  # of bytes to bytes: messages are decoded here
Request = TypeVar("Request", bound=Message)
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # An answer, or an error, for a caller who has gone meanwhile; gRPC logs a traceback for each.
    caller_is_gone = record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "ExecuteBatchError"
    # Metadata that is no UTF-8, with a traceback and what it is, which may be nearly a token.
    return not (caller_is_gone or str(record.msg).startswith("Invalid encoding on"))


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_logging)


@dataclass(frozen=True, slots=True)
class _Callable:
    """What gRPC can call: its name, the role that it needs, and what makes a handler for the calls of one client."""

    name: str
    role: Role | None
    handlers: Callable[[Client | None], "Handler[Any, Any]"]


class GrpcFront(grpc.GenericRpcHandler):
    """Lets gRPC call functions that know no transport: from a decoded request and its Call to a decoded answer.

    Messages are decoded here, not by gRPC, which would answer a broken one with UNKNOWN and the name of a Python class.

    Where tokens are asked for, no message of a call is read before it is known whose it is, and methods that are not there
    are refused as all others are. A service that must stay open to everybody is to be added to gRPC's server before this is.
    """

    def __init__(
        self,
        metrics: Metrics,
        access: TokenAuthenticator | None,
        tracing: "Tracing | None",
        *,
        max_streams: int,
        max_in_flight_per_stream: int,
    ):
        """An edge without methods.

        Args:
            metrics: where it counts.
            access: who may call; None lets everybody.
            tracing: what traces calls; None where nothing does.
            max_streams: streams that may be open at once.
            max_in_flight_per_stream: requests of each that are not answered yet.
        """
        self._metrics = metrics
        for reason in {error.reason for error in STATUS} | {_CANCELLED}:
            metrics.rejected_requests.labels(reason)  # from 0: Prometheus sees no increase in what begins with 1
        self._access = access
        self._tracing = tracing
        self._callables: dict[str, _Callable] = {}  # by the path that gRPC knows each by
        self._max_streams = max_streams
        self._max_in_flight_per_stream = max_in_flight_per_stream
        self._streams: set[Stream] = set()
        self._holding = False
        self._closed = asyncio.Event()

    def add(self, service: str, methods: Iterable[Method[Any]]) -> None:
        """Has the methods of a service called."""
        for method in methods:
            make = self._stream if method.refuse else self._unary
            self.add_handlers(service, method.name, method.role, functools.partial(make, service, method))

    def add_handlers(
        self, service: str, name: str, role: Role | None, make: Callable[[Client | None], "Handler[Any, Any]"]
    ) -> None:
        """Has a method called by the handlers that `make` makes, each for the calls of one client."""
        self._callables[f"/{service}/{name}"] = _Callable(name, role, make)

    def service(self, call: grpc.HandlerCallDetails) -> "Handler[Any, Any] | None":
        """Finds what answers a call: gRPC asks for it when it has the metadata, and reads messages only afterwards."""
        found = self._callables.get(call.method)
        client = None
        if self._access:
            try:
                client = self._access.authenticate(call.invocation_metadata, found.role if found else None)
            except RequestError as error:
                return self._refusal(found.name if found else "unknown", error)
        return found.handlers(client) if found else None

    def stop_streams(self) -> None:
        """Ends every stream with UNAVAILABLE, once it has the answers that are on their way."""
        for stream in self._streams:
            stream.stop()

    def hold_refusals(self) -> None:
        """From here, those who are to be told that the server stops hear of it only once it has `closed`.

        A caller who calls again at once would otherwise have his next call on its way when the port closes, which gRPC ends
        as CANCELLED.
        """
        self._holding = True

    def closed(self) -> None:
        """Tells those who were held."""
        self._closed.set()

    def _unary(self, service: str, method: Method[Any], client: Client | None) -> "Handler[bytes, bytes]":
        async def call(encoded: bytes, context: Context) -> bytes:
            call = self._call(service, method, client, context)
            work = self._answer(method, encoded, call, context)
            del encoded  # gRPC keeps this frame, of a call that fails, until the collector comes
            return await self._end(call, context, work)

        return grpc.unary_unary_rpc_method_handler(call)

    def _stream(self, service: str, method: Method[Any], client: Client | None) -> "Handler[bytes, bytes]":
        async def call(requests: AsyncIterator[bytes], context: Context) -> None:
            whole = self._call(service, method, client, context)
            await self._end(whole, context, self._run_stream(method, requests, whole, context))

        return grpc.stream_stream_rpc_method_handler(call)

    async def _end(self, call: Call, context: Context, work: Awaitable[Result]) -> Result:
        """Awaits the work of a call, tells its caller of the error that it may end with, and ends its span."""
        code = grpc.StatusCode.INTERNAL
        try:
            result = await work
            code = grpc.StatusCode.OK
            return result
        except RequestError as error:
            code = STATUS[type(error)]
            _forget_frames(error)
            if self._holding and isinstance(error, Stopping):
                await self._closed.wait()
            await _abort(context, error)
            raise
        except asyncio.CancelledError:
            code = _code_of_cancelled(call)
            raise
        finally:
            if call.span is not None:
                call.span.end(code)

    def _call(self, service: str, method: Method[Any], client: Client | None, context: Context) -> Call:
        span = None
        if self._tracing:
            span = self._tracing.begin(service, method.name, context.invocation_metadata() or ())
        return Call(_deadline(context), client, span)

    async def _run_stream(self, method: Method[Any], requests: AsyncIterator[bytes], whole: Call, context: Context) -> None:
        """Answers the requests of a stream; what ends it for no request's sake is counted as a request of its own."""
        if len(self._streams) >= self._max_streams:
            raise self._counted(method.name, TooBusy(f"{self._max_streams} streams are open, and more are not taken"))
        stream = Stream(context.write, self._max_in_flight_per_stream, ordered=method.ordered)

        def answer(encoded: bytes) -> Awaitable[bytes]:
            return self._answer(method, encoded, Call(whole.deadline, whole.client, whole.span), context)

        self._streams.add(stream)
        self._metrics.open_streams.inc()
        try:
            await stream.run(requests, answer)
        finally:
            self._streams.discard(stream)
            self._metrics.open_streams.dec()
        if stream.stopped:
            raise self._counted(method.name, Stopping("the server is stopping"))

    async def _answer(self, method: Method[Any], encoded: bytes, call: Call, context: Context) -> bytes:
        """One request, of a call or of a stream, counted. Raises RequestError, unless the method says it in an answer."""
        start = time.monotonic()
        code = grpc.StatusCode.INTERNAL
        request = None
        self._metrics.in_flight_requests.inc()
        try:
            if method.refuse:
                request = _decode(method.request_type, encoded)
                answer = (await method.work(request, call)).SerializeToString()
            else:  # the message, which has its own copy of the images, is left to `work`
                answer = (await method.work(_decode(method.request_type, encoded), call)).SerializeToString()
            code = grpc.StatusCode.OK
            return answer
        except RequestError as error:
            code = STATUS[type(error)]
            self._metrics.rejected_requests.labels(error.reason).inc()
            if method.refuse is None or request is None or isinstance(error, (Stopping, Unauthenticated)):
                raise  # the next request of the stream would end in the same way
            _forget_frames(error)
            return method.refuse(request, error, code.value[0]).SerializeToString()
        except asyncio.CancelledError:
            code = _code_of_cancelled(call)
            late = code is grpc.StatusCode.DEADLINE_EXCEEDED
            self._metrics.rejected_requests.labels(errors.DeadlineExceeded.reason if late else _CANCELLED).inc()
            raise
        except Exception:
            log_event(
                log, logging.ERROR, "call_failed", f"{method.name} failed", exc_info=True, method=method.name, **_ids(call)
            )
            self._metrics.rejected_requests.labels(errors.Internal.reason).inc()
            raise errors.Internal("internal error") from None
        finally:
            self._metrics.in_flight_requests.dec()
            seconds = time.monotonic() - start
            self._metrics.request_seconds.labels(method.name).observe(
                seconds, None if call.span is None else call.span.exemplar
            )
            self._metrics.requests.labels(method.name, code.name).inc()
            if log.isEnabledFor(logging.DEBUG):
                _log_call(method.name, code, call, context, seconds)

    def _refusal(self, method: str, error: RequestError) -> "Handler[Any, Any]":
        """Ends a call, whichever kind its method is of, before a message of it is read."""
        self._counted(method, error)

        async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
            if log.isEnabledFor(logging.DEBUG):
                _log_call(method, STATUS[type(error)], Call(), context, 0.0)
            await _abort(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _counted(self, method: str, error: RequestError) -> RequestError:
        """Counts a call that ends with an error which `_answer` never sees."""
        self._metrics.rejected_requests.labels(error.reason).inc()
        self._metrics.requests.labels(method, STATUS[type(error)].name).inc()
        return error


def _deadline(context: Context) -> float:
    """On the clock of time.monotonic; infinite when the caller set none."""
    remaining: float | None = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


def _decode(request_type: type[Request], encoded: bytes) -> Request:
    try:
        return request_type.FromString(encoded)
    except DecodeError:
        raise InvalidRequest(f"the request is no {request_type.DESCRIPTOR.full_name} message") from None


def _forget_frames(error: RequestError) -> None:
    """Lets go of what raised it, and the images there: gRPC, and a future, keep an error until the collector comes."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


def _code_of_cancelled(call: Call) -> grpc.StatusCode:
    late = call.deadline <= time.monotonic() + _DEADLINE_SLACK_SECONDS
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED


def _ids(call: Call) -> dict[str, str]:
    """What finds a call's trace from a line of the log."""
    return {} if call.span is None else {"trace_id": call.span.trace_id, "span_id": call.span.span_id}


def _log_call(method: str, code: grpc.StatusCode, call: Call, context: Context, seconds: float) -> None:
    fields: dict[str, Any] = {
        "method": method,
        "code": code.name,
        "images": call.images,
        "duration_ms": round(seconds * 1000, 3),
        "model": call.model,
        "version": call.version,
        "client": call.client.name if call.client else "",
        "peer": context.peer(),
        **_ids(call),
    }
    line = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
    log_event(log, logging.DEBUG, "call", f"call {line}", **fields)


async def _abort(context: Context, error: RequestError) -> None:
    """Ends the call with the error's status code."""
    pushback = errors.retry_after_milliseconds(error)
    if pushback:
        # gRPC's own word for "retry after", which its retry policy obeys. Source: gRFC A6, server pushback.
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback)),))
    await context.abort(STATUS[type(error)], str(error)[:_DETAILS_CHARACTERS])
