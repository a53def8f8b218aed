"""Answers requests for every transport: the one place that admits, counts, traces and logs them and maps errors to codes."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError

from serving import errors
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import Code, InvalidRequest, RequestError, Stopping, Unauthenticated
from serving.security.token_file import Role
from serving.security.tokens import Client, Metadata, TokenAuthenticator
from serving.telemetry.logs import log_event, trace_ids
from serving.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serving.telemetry.spans import Tracing

# A label of digits_rejected_requests_total beside the reasons of the error classes.
_CANCELLED = "cancelled"

# A caller whose deadline passes cancels its call, and the cancellation arrives a little before the deadline does here.
_DEADLINE_SLACK_SECONDS = 0.01

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Dispatcher:
    """The methods that callers may call, and the way to each of them. Knows no transport.

    A front looks up the method in `methods`, admits the caller, and lets `answer` do the work.

    Attributes:
        methods: every method, by its path.
    """

    def __init__(self, metrics: Metrics, authenticator: TokenAuthenticator | None, tracing: "Tracing | None"):
        """Starts without methods.

        Args:
            metrics: counts requests.
            authenticator: authenticates clients; None admits everyone.
            tracing: traces calls; None traces nothing.
        """
        self.methods: dict[str, Method[Any, Any]] = {}
        self._metrics = metrics
        self._authenticator = authenticator
        self._tracing = tracing
        # labels() takes longer than the counting itself.
        self._request_seconds = functools.cache(metrics.request_seconds.labels)
        self._requests = functools.cache(metrics.requests.labels)
        for reason in {error.reason for error in errors.request_errors()} | {_CANCELLED}:
            metrics.rejected_requests.labels(
                reason
            )  # exported from 0: Prometheus sees no increase in a series that starts at 1

    def add(self, methods: Iterable[Method[Any, Any]]) -> None:
        """Lets callers call these methods."""
        self.methods |= {method.path: method for method in methods}

    def admit(self, role: Role | None, metadata: Callable[[], Metadata | None]) -> Client | None:
        """Authenticates the caller before the first message of its call is read.

        Args:
            role: role that the call needs; None when any client may make it.
            metadata: returns the metadata of the call.

        Returns:
            The client; None where the server asks for no tokens.

        Raises:
            Unauthenticated: there is no token, or not a known one.
            PermissionDenied: the client lacks the role.
        """
        return self._authenticator.authenticate(metadata(), role) if self._authenticator else None

    async def traced(self, method: Method[Any, Any], call: Call, work: Awaitable[Result]) -> Result:
        """Awaits the work of a call or stream within a span, which ends with the status of the outcome.

        Lines that are logged meanwhile carry the ids of the trace. Without tracing, only awaits the work.
        """
        if self._tracing is None:
            return await work
        call.span = span = self._tracing.begin(method.service, method.name, call.metadata() or ())
        logged = trace_ids.set({"trace_id": span.trace_id, "span_id": span.span_id})
        code = Code.INTERNAL
        try:
            result = await work
            code = Code.OK
            return result
        except RequestError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = _code_of_cancelled(call)
            raise
        finally:
            trace_ids.reset(logged)
            span.end(code)

    async def answer(self, method: Method[Any, Any], encoded: bytes, call: Call) -> bytes:
        """Answers one request, of a call or of a stream, and counts it once.

        Raises:
            RequestError: there is no answer, and the method has no way to encode the error as an answer.
        """
        start = time.monotonic()
        code = Code.INTERNAL
        self._metrics.in_flight_requests.inc()
        try:
            try:
                request = method.parse(encoded)
            except DecodeError:
                raise _Unreadable(f"the request is not a {method.request} message") from None
            answer = method.encode(await method.work(request, call))
            code = Code.OK
            return answer
        except RequestError as error:
            code = error.code
            self._metrics.rejected_requests.labels(error.reason).inc()
            if method.refuse is None or isinstance(error, _ENDS_STREAM):
                raise
            release_frames(error)
            return method.refuse(encoded, error)
        except asyncio.CancelledError:
            code = _code_of_cancelled(call)
            late = code is Code.DEADLINE_EXCEEDED
            self._metrics.rejected_requests.labels(errors.DeadlineExceeded.reason if late else _CANCELLED).inc()
            raise
        except Exception:
            log_event(log, logging.ERROR, "call_failed", f"{method.name} failed", exc_info=True, method=method.name)
            self._metrics.rejected_requests.labels(errors.Internal.reason).inc()
            raise errors.Internal("internal error") from None
        finally:
            self._metrics.in_flight_requests.dec()
            seconds = time.monotonic() - start
            exemplar = None if call.span is None else call.span.exemplar
            self._request_seconds(method.name).observe(seconds, exemplar)
            self._requests(method.name, code.name).inc()
            if log.isEnabledFor(logging.DEBUG):
                _log_call(method.name, code, call, seconds)

    def count_refusal(self, method: str, error: RequestError) -> None:
        """Counts a call or stream that ends with an error beside those of its requests."""
        self._metrics.rejected_requests.labels(error.reason).inc()
        self._requests(method, error.code.name).inc()

    def refuse(self, method: str, error: RequestError, peer: Callable[[], str]) -> None:
        """Counts and logs a call that ends before its request reaches a handler.

        Args:
            method: name of the method that is called; "unknown" for a path without one.
            error: the reason.
            peer: returns the caller's address.
        """
        self.count_refusal(method, error)
        if log.isEnabledFor(logging.DEBUG):
            _log_call(method, error.code, Call(peer=peer), 0.0)


class _Unreadable(InvalidRequest):
    """Bytes that are not a protobuf message."""


# Errors that end a stream: the next request would end in the same way, or the request has no id to be answered under.
_ENDS_STREAM = (Stopping, Unauthenticated, _Unreadable)


def _code_of_cancelled(call: Call) -> Code:
    """Returns the code of a call that its caller has cancelled: gRPC cancels a call whose deadline passes, too."""
    late = call.deadline <= time.monotonic() + _DEADLINE_SLACK_SECONDS
    return Code.DEADLINE_EXCEEDED if late else Code.CANCELLED


def release_frames(error: RequestError) -> None:
    """Drops the traceback, whose frames hold the images: gRPC keeps an error until the garbage collector runs."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


def _log_call(method: str, code: Code, call: Call, seconds: float) -> None:
    fields: dict[str, Any] = {
        "method": method,
        "code": code.name,
        "images": call.images,
        "duration_ms": round(seconds * 1000, 3),
        "model": call.model,
        "version": call.version,
        "client": call.client.name if call.client else "",
        "peer": call.peer(),
    }
    line = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
    log_event(log, logging.DEBUG, "call", f"call {line}", **fields)
