"""Methods that take protobuf messages, for callers that send JSON."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from serving.call import Call
from serving.errors import InvalidRequest, TooBusy, TooLarge
from serving.transport.routes import Routes, Unary

# Bytes of a message whose conversion leaves the event loop: to JSON, it takes about 0.6 µs for a byte of protobuf.
_LONG_BYTES = 1 << 13

_MAX_DEPTH = 20  # of nested JSON; no message of the service has more than four levels

# Bytes of long requests that wait for conversion, at most: nothing else bounds them once they have arrived.
_MAX_WAITING_BYTES = 64 << 20

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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")  # Python converts no faster on several
        self._waiting_bytes = 0

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
        request, answer = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))

        def parse(text: bytes) -> bytes:
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
                if sum(map(text.count, _SEPARATORS)) > _MAX_VALUES:
                    raise TooLarge(f"the JSON has over {_MAX_VALUES} values; send protobuf, or images as one string")
                message = await self._converted(parse, text)
            except (json_format.ParseError, UnicodeDecodeError, RecursionError, DecodeError) as error:
                reason = str(error)[:_REASON_CHARACTERS]
                refusal = InvalidRequest(f"the request is not a {request.DESCRIPTOR.full_name} in JSON: {reason}")
                self._routes.refuse(path, refusal, call.peer)
                raise refusal from None
            except (TooLarge, TooBusy) as error:
                self._routes.refuse(path, error, call.peer)
                raise
            return await self._converted(encode, await handler.answer(message, call))

        return Unary(answer_json)

    async def _converted(self, convert: Callable[[bytes], bytes], content: bytes) -> bytes:
        """Converts a message, off the event loop if it is long. Raises TooBusy, or what `convert` raises."""
        if len(content) < _LONG_BYTES:
            return convert(content)
        if self._waiting_bytes + len(content) > _MAX_WAITING_BYTES:
            raise TooBusy(f"{_MAX_WAITING_BYTES} bytes wait for conversion from or to JSON, which is the limit")
        self._waiting_bytes += len(content)
        converting = asyncio.get_running_loop().run_in_executor(self._thread, convert, content)
        converting.add_done_callback(lambda done: self._release(done, len(content)))
        return await asyncio.shield(converting)  # the thread keeps the content, also of a caller who has gone

    def _release(self, done: "asyncio.Future[bytes]", size: int) -> None:
        self._waiting_bytes -= size
        if not done.cancelled():
            done.exception()  # else asyncio logs the error of a caller who has gone
