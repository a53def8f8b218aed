"""Methods that take protobuf messages, for callers that send JSON."""

import functools
import json

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from serving.call import Call
from serving.errors import InvalidRequest, RequestError, TooLarge
from serving.transport.routes import Routes, Unary

# Bytes of a message whose conversion leaves the event loop: to JSON, it takes about 0.6 µs for a byte of protobuf.
_LONG_BYTES = 1 << 13

_MAX_DEPTH = 20  # of nested JSON; no message of the service has more than four levels

# Bytes of a request, at most, which is the least that any server takes as protobuf. The parsers of JSON and base64 hold the
# interpreter until they end: 10 ms for 4 MiB.
_MAX_BYTES = 4 << 20

# Values in a request, about. The parser holds the interpreter until it ends: 15 MB of small values stop the event loop for
# a third of a second and take 400 MB. A long string, such as the images of a call, costs neither.
_MAX_VALUES = 100_000
_SEPARATORS = (b",", b"[", b"{")  # as many as values, where no string has any

# In parts: json.dumps would hold the interpreter until the answers to a large batch are written.
_ENCODER = json.JSONEncoder()

_REASON_CHARACTERS = 300  # the parser's reason quotes the value that it can't read


class JsonCalls:
    """Finds the message types of a method by its path, and converts between JSON and protobuf."""

    def __init__(self, routes: Routes):
        """Counts refused requests by `routes`."""
        self._routes = routes
        self._adapted: dict[str, Unary] = {}

    def adapt(self, path: str, handler: Unary) -> Unary:
        """Returns a handler of the same method that takes and returns JSON.

        Fields without a value are left out of a request, and stand in an answer: a digit of 0 is shown. Unknown fields of a
        request are ignored, as newer clients may send them. Bytes are in base64.
        """
        if path not in self._adapted:
            self._adapted[path] = self._make(path, handler)
        return self._adapted[path]

    def _make(self, path: str, handler: Unary) -> Unary:
        service, _, name = path.strip("/").rpartition("/")
        method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        aside = self._routes.dispatcher.side_thread
        request, answer = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))

        def parse(text: bytes) -> bytes:
            if sum(map(text.count, _SEPARATORS)) > _MAX_VALUES:
                raise TooLarge(f"the JSON has over {_MAX_VALUES} values; send protobuf, or images as one string")
            if text.lstrip()[:1] != b"{":
                raise json_format.ParseError("expected a JSON object")  # the parser takes [] for an empty message
            return json_format.Parse(
                text, request(), ignore_unknown_fields=True, max_recursion_depth=_MAX_DEPTH
            ).SerializeToString()

        def encode(message: bytes) -> bytes:
            parsed: Message = answer.FromString(message)
            values = json_format.MessageToDict(parsed, always_print_fields_with_no_presence=True)
            return "".join(_ENCODER.iterencode(values)).encode()

        async def answer_json(text: bytes, call: Call) -> bytes:
            try:
                if len(text) < _LONG_BYTES:
                    message = parse(text)
                else:
                    message = await aside.run(functools.partial(parse, text), len(text), call)
            except (json_format.ParseError, UnicodeDecodeError, RecursionError, DecodeError) as error:
                reason = str(error)[:_REASON_CHARACTERS]
                refusal = InvalidRequest(f"the request is not a {request.DESCRIPTOR.full_name} in JSON: {reason}")
                self._routes.refuse(path, refusal, call.peer)
                raise refusal from None
            except RequestError as error:
                self._routes.refuse(path, error, call.peer)
                raise
            encoded = await handler.answer(message, call)
            if len(encoded) < _LONG_BYTES:
                return encode(encoded)
            return await aside.encode(functools.partial(encode, encoded), len(encoded), call)

        return Unary(answer_json, max_bytes=min(handler.max_bytes or _MAX_BYTES, _MAX_BYTES))
