"""The front on grpcio: grpc.aio receives the calls, and the handlers of `routes` answer them.

gRPC refuses some calls by itself before this code sees them, such as a message over the size limit. No metric counts them.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc

from serving.api.dispatch import release_frames
from serving.call import Call
from serving.errors import Internal, RequestError, Stopping, TooLarge, retry_after_milliseconds
from serving.ports import PortTaken, address
from serving.security.tls import TLS
from serving.security.tokens import Client
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.transport.grpc_options import server_options
from serving.transport.routes import Handler, Routes, Streaming, Unary

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]
GrpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Result = TypeVar("Result")

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}

# The message travels in a header, and gRPC replaces the status of a call whose headers are too large.
_DETAILS_CHARACTERS = 1000

# New calls are refused for this long before the port closes, so that clients that keep calling learn of the shutdown.
_REFUSING_SECONDS = 0.2

# Time for gRPC to send GOAWAY on its connections.
_CLOSING_SECONDS = 0.05

# Time for the last answers to be written. Health watches never end and are cut off afterwards.
_WRITING_SECONDS = 0.5


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # gRPC logs a traceback for each answer to a caller that has gone meanwhile.
    caller_has_gone = record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "ExecuteBatchError"
    # gRPC logs metadata that are not UTF-8 in full; they may be nearly a token.
    return not (caller_has_gone or str(record.msg).startswith("Invalid encoding on"))


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_logging)


class GrpcFront:
    """A gRPC server of grpcio, with the methods of a server's routes."""

    def __init__(self, settings: Settings, routes: Routes, tls: TLS | None, *, shares_port: bool):
        """Listens nowhere yet.

        Args:
            settings: limits, keepalive and connection age.
            routes: find the handler of each call.
            tls: certificates; None accepts connections that are not encrypted.
            shares_port: other workers listen on the same port.
        """
        self._tls = tls
        self._handlers = _Handlers(routes)
        self._server = grpc.aio.server(options=server_options(settings, shares_port=shares_port))
        self._server.add_generic_rpc_handlers((self._handlers,))

    def listen(self, host: str, port: int) -> int:
        """Binds the port and returns its number, also when the system chose it.

        Raises:
            PortTaken: the port is taken. The front must not be used afterwards.
        """
        where = address(host, port)
        try:
            if self._tls:
                return self._server.add_secure_port(where, self._tls.server_credentials())
            return self._server.add_insecure_port(where)
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {where} for gRPC; is it taken?") from error

    async def start(self) -> None:
        """Answers calls."""
        await self._server.start()

    async def stop(self, seconds: float, finish: Callable[[], Awaitable[None]]) -> None:
        """Lets `finish` answer the calls in flight, closes the port once callers know, and cuts off the rest at `seconds`.

        From the close on, gRPC ends a call that is just coming in as CANCELLED, which callers don't retry elsewhere. So each
        refusal is delayed until the port is closed: a caller who retries at once would have its next call under way then.
        """
        end = time.monotonic() + seconds
        await finish()
        self._handlers.hold_refusals()
        await asyncio.sleep(min(_REFUSING_SECONDS, seconds))
        closing = asyncio.create_task(self._server.stop(min(_WRITING_SECONDS, max(0.0, end - time.monotonic()))))
        await asyncio.sleep(_CLOSING_SECONDS)
        self._handlers.release_refusals()
        await closing


class _Handlers(grpc.GenericRpcHandler):
    """Lets gRPC call the handlers of `routes`.

    Where the server asks for tokens, no message is read before the caller is authenticated.
    """

    def __init__(self, routes: Routes):
        self._routes = routes
        self._holding = False
        self._closed = asyncio.Event()

    def hold_refusals(self) -> None:
        """Delays each UNAVAILABLE of a stopping server until `release_refusals`."""
        self._holding = True

    def release_refusals(self) -> None:
        """Sends the delayed refusals."""
        self._closed.set()

    def service(self, call: grpc.HandlerCallDetails) -> GrpcHandler:
        """Finds the handler of a call. gRPC asks when it has the call's metadata, and reads messages only afterwards."""
        try:
            handler, client = self._routes.find(call.method, lambda: call.invocation_metadata)
        except RequestError as error:
            return self._refusal(call.method, error)
        if isinstance(handler, Unary):
            return self._unary(call.method, handler, client)
        return self._streaming(call.method, handler, client)

    def _unary(self, path: str, handler: Unary, client: Client | None) -> GrpcHandler:
        async def answer(encoded: bytes, context: Context) -> bytes:
            if error := _too_large(encoded, handler):
                del encoded  # gRPC keeps the frame of a failed call until the garbage collector runs
                self._routes.refuse(path, error, context.peer)
                await _abort(context, error)
            work = handler.answer(encoded, _call(client, context))
            del encoded  # as above
            return await self._finish(path, work, context)

        return grpc.unary_unary_rpc_method_handler(answer)

    def _streaming(self, path: str, handler: Streaming, client: Client | None) -> GrpcHandler:
        async def bounded(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            async for encoded in requests:
                if error := _too_large(encoded, handler):
                    self._routes.refuse(path, error, context.peer)
                    raise error
                yield encoded

        async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
            if handler.max_bytes is not None:
                requests = bounded(requests, context)
            await self._finish(path, handler.run(requests, context.write, _call(client, context)), context)

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _finish(self, path: str, work: Awaitable[Result], context: Context) -> Result:
        """Awaits the work of a call, and ends the call with the status of its error."""
        try:
            return await work
        except RequestError as error:
            release_frames(error)
            if self._holding and isinstance(error, Stopping):
                await self._closed.wait()
            await _abort(context, error)
            raise
        except Exception as error:  # gRPC would tell the caller the class and the text of the exception
            if type(error).__module__.partition(".")[0] == "grpc":  # the caller has gone
                raise
            message = f"the handler of {self._routes.name(path)} failed"
            log_event(log, logging.ERROR, "call_failed", message, exc_info=True)
            await _abort(context, Internal("internal error"))
            raise

    def _refusal(self, path: str, error: RequestError) -> GrpcHandler:
        """Builds a handler that ends a call, unary or stream, before any message of the call is read."""

        async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
            self._routes.refuse(path, error, context.peer)
            await _abort(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _call(client: Client | None, context: Context) -> Call:
    remaining: float | None = context.time_remaining()
    deadline = math.inf if remaining is None else time.monotonic() + remaining
    return Call(deadline, client, None, context.peer, context.invocation_metadata)


def _too_large(encoded: bytes, handler: Handler) -> TooLarge | None:
    """Returns the error of a message over the limit of its method; gRPC itself knows only that of the server."""
    if handler.max_bytes is None or len(encoded) <= handler.max_bytes:
        return None
    return TooLarge(f"the message is {len(encoded)} bytes, this method takes {handler.max_bytes}")


async def _abort(context: Context, error: RequestError) -> None:
    """Ends the call with the status code of the error."""
    pushback = retry_after_milliseconds(error)
    if pushback:
        # The name that gRPC's retry policy obeys. Source: gRFC A6, server pushback.
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback)),))
    await context.abort(_STATUS_CODES[error.code], str(error)[:_DETAILS_CHARACTERS])
