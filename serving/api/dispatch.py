"""Answers requests for every transport: the one place that admits, counts, traces and logs them and maps errors to codes."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError

from serving import errors
from serving.api.request_counter import RequestCounter, code_of_cancelled
from serving.api.rpc import Method
from serving.api.run_calls import RunCalls
from serving.api.side_thread import LONG_BYTES, SideThread
from serving.api.stream_reply import StreamReply
from serving.api.wire import TooManyFields, outline
from serving.call import Call, Pending, Reply
from serving.errors import Code, InvalidRequest, RequestError, Stopping, Unauthenticated
from serving.security.token_file import Role
from serving.security.tokens import Client, Metadata, TokenAuthenticator
from serving.telemetry.logs import log_event, trace_ids
from serving.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serving.telemetry.spans import Tracing

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Dispatcher:
    """The methods that callers may call, and the way to each of them. Knows no transport.

    A front looks up the method in `methods`, admits the caller, and lets `enter` or `answer` do the work.

    Attributes:
        methods: every method, by its path.
        side_thread: works on long messages.
    """

    def __init__(self, metrics: Metrics, authenticator: TokenAuthenticator | None, tracing: "Tracing | None"):
        """Starts without methods.

        Args:
            metrics: counts requests.
            authenticator: authenticates clients; None admits everyone.
            tracing: traces calls; None traces nothing.
        """
        self.methods: dict[str, Method[Any, Any]] = {}
        self._authenticator = authenticator
        self._counter = RequestCounter(metrics)
        self._tracing = tracing
        self._run_calls: dict[str, RunCalls] = {}
        self.side_thread = SideThread()

    def add(self, methods: Iterable[Method[Any, Any]]) -> None:
        """Lets callers call these methods."""
        for method in methods:
            self.methods[method.path] = method
            if method.by_run:
                tracing = None if method.refuse else self._tracing
                self._run_calls[method.path] = RunCalls(method, method.by_run, self._counter, tracing)

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
            code = code_of_cancelled(call)
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
        self._counter.begin()
        try:
            if call.client is not None:
                call.client.require_valid()  # it may have been revoked while its message arrived
            try:
                request = await self._parse(method, encoded, call)
            except DecodeError:
                raise _Unreadable(f"the request is not a {method.request} message") from None
            answer = method.encode(await method.work(request, call))
            code = Code.OK
            return answer
        except RequestError as error:
            code = error.code
            self._counter.reject(error.reason)
            return _refuse(method, encoded, error)
        except asyncio.CancelledError:
            code = self._counter.reject_cancelled(call)
            raise
        except Exception:
            log_event(log, logging.ERROR, "call_failed", f"{method.name} failed", exc_info=True, method=method.name)
            self._counter.reject(errors.Internal.reason)
            raise errors.Internal("internal error") from None
        finally:
            self._counter.end(method.name, code, call, time.monotonic() - start)

    def enter(self, method: Method[Any, Any], encoded: bytes, call: Call, reply: Reply) -> Pending | None:
        """Has a request answered together with others of its run of the model, and counts it once.

        No task and no future waits for the answer: `reply` takes the answer or the error, possibly before this returns.

        Returns:
            The call, which its front abandons when the caller cancels or the deadline passes. None, with nothing counted
            and nothing charged, for a request that only `answer` answers: of another method, with a crop, unreadable, or a
            ModelInfer with a timeout of its own.
        """
        calls = self._run_calls.get(method.path)
        return calls.enter(encoded, call, reply) if calls else None

    def begin(self, method: Method[Any, Any], encoded: bytes, call: Call) -> asyncio.Future[bytes]:
        """Has one request of a stream answered, by the run where that is possible, and counts it once.

        Returns:
            The answer, or a RequestError that ends the stream. Cancelling it takes the request out of the service.

        Raises:
            Unauthenticated: the client was revoked, whatever the request is.
        """
        if call.client is not None:
            try:
                call.client.require_valid()
            except Unauthenticated as error:
                self.count_refusal(method.name, error)
                raise
        end_of_stream = call.deadline
        reply = StreamReply(functools.partial(_refuse, method, encoded))
        pending = self.enter(method, encoded, call, reply)
        if pending is None:
            return asyncio.ensure_future(self.answer(method, encoded, call))
        if not reply.done():
            reply.wait_for(pending, call.deadline if call.deadline < end_of_stream else None)
        return reply

    async def _parse(self, method: Method[Any, Any], encoded: bytes, call: Call) -> Any:
        if len(encoded) <= method.long_bytes:
            return method.parse(encoded)
        return await self.side_thread.run(functools.partial(method.parse, encoded), len(encoded), call)

    def count_cancelled(self, method: str, call: Call) -> None:
        """Counts a call whose caller has gone before its request reached a handler."""
        self._counter.refuse_cancelled(method, call)

    def count_refusal(self, method: str, error: RequestError) -> None:
        """Counts a call or stream that ends with an error beside those of its requests."""
        self._counter.refuse(method, error)

    def refuse(self, method: str, error: RequestError, peer: Callable[[], str]) -> None:
        """Counts and logs a call that ends before its request reaches a handler.

        Args:
            method: name of the method that is called; "unknown" for a path without one.
            error: the reason.
            peer: returns the caller's address.
        """
        self._counter.refuse(method, error)
        self._counter.log_refusal(method, error, peer)


def _refuse(method: Method[Any, Any], encoded: bytes, error: RequestError) -> bytes:
    """Encodes the error of a request as an answer, where the request has a stream that goes on; otherwise raises it."""
    if method.refuse is None or isinstance(error, _ENDS_STREAM):
        raise error
    if len(encoded) > LONG_BYTES:  # nobody knows whether parsing it for its id would hold the event loop
        try:
            encoded = outline(encoded)
        except InvalidRequest:
            raise error from None
    release_frames(error)
    return method.refuse(encoded, error)


class _Unreadable(InvalidRequest):
    """Bytes that are not a protobuf message."""


# Errors that end a stream: the next request would end in the same way, or the request has no id to be answered under.
_ENDS_STREAM = (Stopping, Unauthenticated, _Unreadable, TooManyFields)


def release_frames(error: RequestError) -> None:
    """Drops the traceback, whose frames hold the images: gRPC keeps an error until the garbage collector runs."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
