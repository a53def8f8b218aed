"""gRPC over HTTP/2: how messages and statuses stand in headers, body and trailers."""

from serving.errors import RequestError, retry_after_milliseconds
from serving.transport.http2_front.engine import Engine, Headers
from serving.transport.http2_front.framing import ENCODINGS, frame, read_only_message
from serving.transport.http2_front.head import Head
from serving.transport.routes import Unary

_HEAD: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", ENCODINGS)]
_OK: Headers = [(b"grpc-status", b"0")]

_DETAILS_CHARACTERS = 1000  # the message travels in a header

# Bytes of a status message that stay as they are; the others are percent-encoded. Source: gRPC over HTTP/2.
_PLAIN = {byte: chr(byte) if 0x20 <= byte <= 0x7E and byte != ord("%") else f"%{byte:02X}" for byte in range(256)}


class GrpcDialect:
    """The protocol gRPC, for unary calls and streams."""

    reads_base64 = False

    def timeout(self, head: Head) -> float | None:
        """Returns the seconds until the deadline; None without one. Raises InvalidRequest."""
        return head.grpc_timeout()

    def adapt(self, path: str, handler: Unary) -> Unary:
        """Returns the handler itself, which takes protobuf."""
        return handler

    def read(self, body: bytes | bytearray, head: Head, max_bytes: int) -> bytes:
        """Returns the message of a unary request. Raises RequestError."""
        return read_only_message(body, head.fields.get(b"grpc-encoding", b""), max_bytes)

    def answer(self, engine: Engine, stream_id: int, head: Head, message: bytes) -> None:
        """Sends the one answer of a unary call, with its status."""
        engine.respond(stream_id, _HEAD)
        engine.send(stream_id, frame(message))
        engine.send_trailers(stream_id, _OK)

    def fail(self, engine: Engine, stream_id: int, head: Head, error: RequestError) -> None:
        """Ends a call without an answer."""
        engine.respond(stream_id, [*_HEAD, *error_trailers(error)], ends=True)

    def begin(self, engine: Engine, stream_id: int, head: Head) -> None:
        """Begins the answers of a stream."""
        engine.respond(stream_id, _HEAD)

    def write(self, engine: Engine, stream_id: int, message: bytes) -> None:
        """Sends one answer of a stream."""
        engine.send(stream_id, frame(message))

    def end(self, engine: Engine, stream_id: int) -> None:
        """Ends a stream whose answers have all been sent."""
        engine.send_trailers(stream_id, _OK)

    def break_off(self, engine: Engine, stream_id: int, error: RequestError) -> None:
        """Ends a stream whose answers have begun, with an error."""
        engine.send_trailers(stream_id, error_trailers(error))


def error_trailers(error: RequestError) -> Headers:
    """Returns the trailers that report an error."""
    details = "".join(_PLAIN[byte] for byte in str(error)[:_DETAILS_CHARACTERS].encode())
    trailers = [(b"grpc-status", b"%d" % error.code), (b"grpc-message", details.encode())]
    pushback = retry_after_milliseconds(error)
    if pushback:
        # The name that gRPC's retry policy obeys. Source: gRFC A6, server pushback.
        trailers.append((b"grpc-retry-pushback-ms", b"%d" % pushback))
    return trailers
