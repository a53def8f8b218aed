"""The gRPC transport: deadlines and metadata come in, status codes go out.

gRPC refuses some calls by itself before this code sees them, such as a message over the size limit. No metric counts them.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeAlias, TypeVar

import grpc

from serving.api.dispatch import Dispatcher, release_frames
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import RequestError, Stopping, retry_after_milliseconds
from serving.security.tokens import Client
from serving.transport.stream import Streams

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Result = TypeVar("Result")

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}

# The message travels in a header, and gRPC replaces the status of a call whose headers are too large.
_DETAILS_CHARACTERS = 1000


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # gRPC logs a traceback for each answer to a caller that has gone meanwhile.
    caller_has_gone = record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "ExecuteBatchError"
    # gRPC logs metadata that are not UTF-8 in full; they may be nearly a token.
    return not (caller_has_gone or str(record.msg).startswith("Invalid encoding on"))


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_logging)


class GrpcFront(grpc.GenericRpcHandler):
    """Lets gRPC call the methods of a dispatcher.

    gRPC would answer bytes that are not a message with UNKNOWN and the name of a Python class, so the dispatcher parses
    them. Where the server asks for tokens, no message is read before the caller is authenticated, and unknown methods are
    refused like all others. A service that stays open to everyone must be added to the gRPC server before this handler.
    """

    def __init__(self, dispatcher: Dispatcher, streams: Streams):
        """Answers unary calls by `dispatcher` and bidirectional streams by `streams`."""
        self._dispatcher = dispatcher
        self._streams = streams
        self._handlers: dict[str, Handler] = {}
        self._holding = False
        self._closed = asyncio.Event()

    def add_handler(self, path: str, handler: Handler) -> None:
        """Adds a method that brings its own gRPC handler; any client may call it."""
        self._handlers[path] = handler

    def service(self, call: grpc.HandlerCallDetails) -> "Handler | None":
        """Finds the handler of a call. gRPC asks when it has the call's metadata, and reads messages only afterwards."""
        method, handler = self._dispatcher.methods.get(call.method), self._handlers.get(call.method)
        client = None
        if self._dispatcher.authenticator:
            name, role = (method.name, method.role) if method else (call.method.rpartition("/")[2], None)
            name = name if method or handler else "unknown"  # a label of metrics must not take any value
            try:
                client = self._dispatcher.admit(name, role, call.invocation_metadata)
            except RequestError as error:
                return self._refusal(name, error)
        if method is None:
            return handler
        return self._stream(method, client) if method.refuse else self._unary(method, client)

    def hold_refusals(self) -> None:
        """Delays each UNAVAILABLE of a stopping server until `release_refusals`.

        A caller who retries at once would otherwise have its next call under way when the port closes, and gRPC ends such
        a call as CANCELLED, which callers don't retry elsewhere.
        """
        self._holding = True

    def release_refusals(self) -> None:
        """Sends the delayed refusals."""
        self._closed.set()

    def _unary(self, method: Method[Any, Any], client: Client | None) -> Handler:
        async def answer(encoded: bytes, context: Context) -> bytes:
            call = _call(client, context)
            work = self._dispatcher.traced(method, call, self._dispatcher.answer(method, encoded, call))
            del encoded  # gRPC keeps the frame of a failed call until the garbage collector runs
            return await self._finish(work, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def _stream(self, method: Method[Any, Any], client: Client | None) -> Handler:
        async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
            call = _call(client, context)
            await self._finish(self._streams.run(method, requests, context.write, call), context)

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _finish(self, work: Awaitable[Result], context: Context) -> Result:
        """Awaits the work of a call, and ends the call with the status of its error."""
        try:
            return await work
        except RequestError as error:
            release_frames(error)
            if self._holding and isinstance(error, Stopping):
                await self._closed.wait()
            await _abort(context, error)
            raise

    def _refusal(self, method: str, error: RequestError) -> Handler:
        """Builds a handler that ends a call, unary or stream, before any message of the call is read."""

        async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
            self._dispatcher.log_refusal(method, error, context.peer)
            await _abort(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _call(client: Client | None, context: Context) -> Call:
    remaining: float | None = context.time_remaining()
    deadline = math.inf if remaining is None else time.monotonic() + remaining
    return Call(deadline, client, None, context.peer, context.invocation_metadata)


async def _abort(context: Context, error: RequestError) -> None:
    """Ends the call with the status code of the error."""
    pushback = retry_after_milliseconds(error)
    if pushback:
        # The name that gRPC's retry policy obeys. Source: gRFC A6, server pushback.
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback)),))
    await context.abort(_STATUS_CODES[error.code], str(error)[:_DETAILS_CHARACTERS])
