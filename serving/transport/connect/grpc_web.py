"""gRPC-Web, for browsers: gRPC's messages over any HTTP, with the trailers as the last message of the body.

Source: the document "PROTOCOL-WEB" of grpc.
"""

import base64
import binascii

from serving.errors import InvalidRequest, RequestError
from serving.transport.connect.cors import Cors
from serving.transport.http2_front.engine import Engine, Headers
from serving.transport.http2_front.framing import frame, read_only_message
from serving.transport.http2_front.grpc_dialect import error_trailers
from serving.transport.http2_front.head import Head
from serving.transport.routes import Unary

_TRAILERS = 0x80  # flag of the message that holds the trailers
_BASE64_BYTES = 1 << 20  # decoded at once; a multiple of four
_OK: Headers = [(b"grpc-status", b"0")]


class GrpcWebTextDialect:
    """gRPC-Web in base64, as Google's client for browsers sends by default; for unary calls."""

    reads_base64 = True

    def __init__(self, content_type: bytes, cors: Cors):
        """Answers in `content_type`, to the pages that `cors` allows."""
        self._content_type = content_type
        self._cors = cors

    def timeout(self, head: Head) -> float | None:
        """Returns the seconds until the deadline; None without one. Raises InvalidRequest."""
        return head.grpc_timeout()

    def adapt(self, path: str, handler: Unary) -> Unary:
        """Returns the handler itself, which takes protobuf."""
        return handler

    def read(self, body: bytes | bytearray, head: Head, max_bytes: int) -> bytes:
        """Returns the message of a unary request. Raises RequestError."""
        return read_only_message(self._decode(body), head.fields.get(b"grpc-encoding", b""), max_bytes)

    def answer(self, engine: Engine, stream_id: int, head: Head, message: bytes) -> None:
        """Sends the one answer of a unary call, with its status."""
        self.begin(engine, stream_id, head)
        engine.send(stream_id, self._encode(frame(message) + _trailer_frame(_OK)), ends=True)

    def fail(self, engine: Engine, stream_id: int, head: Head, error: RequestError) -> None:
        """Ends a call without an answer."""
        self.begin(engine, stream_id, head)
        engine.send(stream_id, self._encode(_trailer_frame(error_trailers(error))), ends=True)

    def begin(self, engine: Engine, stream_id: int, head: Head) -> None:
        """Sends the headers of the answers."""
        status = [(b":status", b"200"), (b"content-type", self._content_type)]
        engine.respond(stream_id, [*status, *self._cors.headers(head)])

    @staticmethod
    def _decode(body: bytes | bytearray) -> bytes | bytearray:
        try:
            if b"=" in body[:-2]:
                raise binascii.Error("padding in the middle")
            # In parts: the decoder holds the interpreter until it ends.
            starts = range(0, len(body), _BASE64_BYTES)
            return b"".join([base64.b64decode(body[start : start + _BASE64_BYTES], validate=True) for start in starts])
        except binascii.Error:
            raise InvalidRequest("the body is not base64, as its media type promises") from None

    @staticmethod
    def _encode(content: bytes) -> bytes:
        return base64.b64encode(content)


class GrpcWebDialect(GrpcWebTextDialect):
    """gRPC-Web in binary, for unary calls and streams."""

    reads_base64 = False

    def write(self, engine: Engine, stream_id: int, message: bytes) -> None:
        """Sends one answer of a stream."""
        engine.send(stream_id, frame(message))

    def end(self, engine: Engine, stream_id: int) -> None:
        """Ends a stream whose answers have all been sent."""
        engine.send(stream_id, _trailer_frame(_OK), ends=True)

    def break_off(self, engine: Engine, stream_id: int, error: RequestError) -> None:
        """Ends a stream whose answers have begun, with an error."""
        engine.send(stream_id, _trailer_frame(error_trailers(error)), ends=True)

    @staticmethod
    def _decode(body: bytes | bytearray) -> bytes | bytearray:
        return body

    @staticmethod
    def _encode(content: bytes) -> bytes:
        return content


def _trailer_frame(trailers: Headers) -> bytes:
    return frame(b"".join(name + b": " + value + b"\r\n" for name, value in trailers), _TRAILERS)
