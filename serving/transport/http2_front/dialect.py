"""What a protocol over HTTP/2 has to define: gRPC, gRPC-Web, Connect."""

from typing import Protocol, runtime_checkable

from serving.errors import RequestError
from serving.transport.http2_front.engine import Engine
from serving.transport.http2_front.head import Head
from serving.transport.routes import Unary


class Dialect(Protocol):
    """A protocol for calls with one request and one answer.

    Attributes:
        reads_base64: True where requests come in base64, which takes time by the byte.
    """

    reads_base64: bool

    def timeout(self, head: Head) -> float | None:
        """Returns the seconds until the deadline; None without one. Raises InvalidRequest."""

    def adapt(self, path: str, handler: Unary) -> Unary:
        """Returns a handler for the messages of this protocol, made of the handler of a path."""

    def read(self, body: bytes | bytearray, head: Head, max_bytes: int) -> bytes:
        """Returns the message of a request. Raises RequestError."""

    def answer(self, engine: Engine, stream_id: int, head: Head, message: bytes) -> None:
        """Sends the one answer of a call, with its status."""

    def fail(self, engine: Engine, stream_id: int, head: Head, error: RequestError) -> None:
        """Ends a call without an answer."""


@runtime_checkable
class StreamDialect(Dialect, Protocol):
    """A protocol that can also call methods with many requests or answers; requests are framed as gRPC frames them."""

    def begin(self, engine: Engine, stream_id: int, head: Head) -> None:
        """Begins the answers of a stream."""

    def write(self, engine: Engine, stream_id: int, message: bytes) -> None:
        """Sends one answer of a stream."""

    def end(self, engine: Engine, stream_id: int) -> None:
        """Ends a stream whose answers have all been sent."""

    def break_off(self, engine: Engine, stream_id: int, error: RequestError) -> None:
        """Ends a stream whose answers have begun, with an error."""
