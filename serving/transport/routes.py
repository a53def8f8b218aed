"""Finds what answers a call, by the path of the call, and admits the caller. Every front asks here.

A handler knows no transport: it takes encoded requests and returns encoded answers, or raises RequestError.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from serving.api.dispatch import Dispatcher
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import RequestError, Unsupported
from serving.security.tokens import Client, Metadata
from serving.transport.stream import Streams

Write: TypeAlias = Callable[[bytes], Awaitable[None]]

_UNKNOWN = "unknown"  # a label of metrics must not take any value that a caller names


class Unary(NamedTuple):
    """A handler of one request and one answer.

    Attributes:
        answer: returns the encoded answer to an encoded request.
        method: the method of the dispatcher; None for a handler that brings its own work.
        max_bytes: size of a request message, at most; None for the limit of the server.
    """

    answer: Callable[[bytes, Call], Awaitable[bytes]]
    method: Method[Any, Any] | None = None
    max_bytes: int | None = None


class Streaming(NamedTuple):
    """A handler of a stream of requests, answers, or both.

    Attributes:
        run: takes the encoded requests and sends each encoded answer by `write`, which returns when there is room for more.
        endless: it runs until its caller cancels it, so a stopping server doesn't wait for it.
        max_bytes: size of a request message, at most; None for the limit of the server.
    """

    run: Callable[[AsyncIterator[bytes], Write, Call], Awaitable[None]]
    endless: bool = False
    max_bytes: int | None = None


Handler: TypeAlias = Unary | Streaming


class Route(NamedTuple):
    """A handler and the caller who may call it; the client is None where the server asks for no tokens."""

    handler: Handler
    client: Client | None


class Routes:
    """Every path that callers may call. A front looks a call up before it reads the first message of the call."""

    def __init__(self, dispatcher: Dispatcher, streams: Streams):
        """Takes the methods of `dispatcher`; `streams` runs those that answer a stream."""
        self.dispatcher = dispatcher
        self._handlers: dict[str, Handler] = {}
        self._names: dict[str, str] = {}
        self._public: set[str] = set()
        for path, method in dispatcher.methods.items():
            self._names[path] = method.name
            self._handlers[path] = _stream_handler(streams, method) if method.refuse else _unary_handler(dispatcher, method)

    def add(self, handlers: Mapping[str, Handler], *, public: bool = False) -> None:
        """Adds handlers by path. Any caller may call `public` ones, also where the server asks for tokens."""
        self._handlers |= handlers
        self._names |= {path: path.rpartition("/")[2] for path in handlers}
        if public:
            self._public |= handlers.keys()

    def name(self, path: str) -> str:
        """Returns the name that calls of a path are counted under."""
        return self._names.get(path, _UNKNOWN)

    def find(self, path: str, metadata: Callable[[], Metadata | None]) -> Route:
        """Finds the handler of a call, and authenticates its caller.

        Args:
            path: path of the call, such as "/digits.v1.DigitService/Recognize".
            metadata: returns the metadata of the call.

        Raises:
            RequestError: the caller is refused, or no such method exists. `refuse` counts it.
        """
        handler = self._handlers.get(path)
        client = None
        if path not in self._public:
            method = self.dispatcher.methods.get(path)
            client = self.dispatcher.admit(method.role if method else None, metadata)
        if handler is None:
            raise Unsupported("there is no such method here")
        return Route(handler, client)

    def refuse(self, path: str, error: RequestError, peer: Callable[[], str]) -> None:
        """Counts and logs a call that ends before its request reaches a handler; `peer` returns the caller's address."""
        self.dispatcher.refuse(self.name(path), error, peer)


def _unary_handler(dispatcher: Dispatcher, method: Method[Any, Any]) -> Unary:
    def answer(encoded: bytes, call: Call) -> Awaitable[bytes]:
        return dispatcher.traced(method, call, dispatcher.answer(method, encoded, call))

    return Unary(answer, method, method.max_bytes)


def _stream_handler(streams: Streams, method: Method[Any, Any]) -> Streaming:
    def run(requests: AsyncIterator[bytes], write: Write, call: Call) -> Awaitable[None]:
        return streams.run(method, requests, write, call)

    return Streaming(run, max_bytes=method.max_bytes)
