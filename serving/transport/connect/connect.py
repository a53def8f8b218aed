"""The Connect protocol for unary calls: one HTTP POST, with a message in protobuf or JSON as its body.

Source: the specification "Connect Protocol", connectrpc.com.
"""

import json
import math

from serving.errors import Code, RequestError, TooLarge, retry_after_milliseconds
from serving.transport.connect.cors import Cors
from serving.transport.connect.json_calls import JsonCalls
from serving.transport.http2_front.engine import Engine
from serving.transport.http2_front.framing import decompress
from serving.transport.http2_front.head import Head
from serving.transport.routes import Unary

_STATUS = {
    Code.CANCELLED: b"499",
    Code.INVALID_ARGUMENT: b"400",
    Code.DEADLINE_EXCEEDED: b"504",
    Code.NOT_FOUND: b"404",
    Code.ALREADY_EXISTS: b"409",
    Code.PERMISSION_DENIED: b"403",
    Code.RESOURCE_EXHAUSTED: b"429",
    Code.FAILED_PRECONDITION: b"400",
    Code.ABORTED: b"409",
    Code.OUT_OF_RANGE: b"400",
    Code.UNIMPLEMENTED: b"501",
    Code.UNAVAILABLE: b"503",
    Code.UNAUTHENTICATED: b"401",
}
_OTHER_STATUS = b"500"

_NAMES = {Code.CANCELLED: "canceled"}  # the protocol's spelling; the other codes have their own names in lower case


class ConnectDialect:
    """The Connect protocol in one media type, application/proto or application/json."""

    reads_base64 = False

    def __init__(self, content_type: bytes, cors: Cors, json_calls: JsonCalls | None = None):
        """Answers in `content_type`; `json_calls` if that is JSON."""
        self._content_type = content_type
        self._cors = cors
        self._json_calls = json_calls

    def timeout(self, head: Head) -> float | None:
        """Returns the seconds until the deadline; None without one. Raises InvalidRequest."""
        return head.connect_timeout()

    def adapt(self, path: str, handler: Unary) -> Unary:
        """Returns a handler that takes and returns the messages of this media type."""
        return self._json_calls.adapt(path, handler) if self._json_calls else handler

    def read(self, body: bytes | bytearray, head: Head, max_bytes: int) -> bytes:
        """Returns the message of a request. Raises RequestError."""
        if len(body) > max_bytes:
            raise TooLarge(f"the message is {len(body)} bytes, this method takes {max_bytes}")
        encoding = head.fields.get(b"content-encoding", b"identity")
        if encoding == b"identity":
            return bytes(body)
        return decompress(bytes(body), encoding, max_bytes)

    def answer(self, engine: Engine, stream_id: int, head: Head, message: bytes) -> None:
        """Sends the answer of a call."""
        engine.respond(stream_id, [(b":status", b"200"), (b"content-type", self._content_type), *self._cors.headers(head)])
        engine.send(stream_id, message, ends=True)

    def fail(self, engine: Engine, stream_id: int, head: Head, error: RequestError) -> None:
        """Ends a call with an error: its code as the status of HTTP, and as JSON whatever the request's media type."""
        headers = [(b":status", _STATUS.get(error.code, _OTHER_STATUS)), (b"content-type", b"application/json")]
        pushback = retry_after_milliseconds(error)
        if pushback:
            headers.append((b"retry-after", b"%d" % math.ceil(pushback / 1000)))
        engine.respond(stream_id, [*headers, *self._cors.headers(head)])
        name = _NAMES.get(error.code, error.code.name.lower())
        engine.send(stream_id, json.dumps({"code": name, "message": str(error)}).encode(), ends=True)
