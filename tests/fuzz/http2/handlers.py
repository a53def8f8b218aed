"""Handlers under the service's own paths: the JSON dialect finds their message types by path."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from serving.api import digits, open_inference
from serving.api.side_thread import SideThread
from serving.call import Call, Reply
from serving.errors import InvalidRequest, RequestError
from serving.security.tokens import Metadata
from serving.transport import health
from serving.transport.routes import Routes, Streaming, Unary, Write

_HEALTH = f"/{health.NAME}"
_DIGITS = f"/{digits.NAME}"
_INFER = f"/{open_inference.NAME}"

STREAMS = [f"{_DIGITS}/RecognizeStream", f"{_INFER}/ModelStreamInfer", f"{_HEALTH}/Watch"]
"""Paths of methods with many requests or answers."""

PATHS = [
    *[f"{_HEALTH}/Check"] * 5,
    *[f"{_DIGITS}/Recognize", f"{_DIGITS}/RecognizeBatch", f"{_DIGITS}/ReportTruth"] * 2,
    *STREAMS * 2,
    f"{_DIGITS}/None",
]
"""All paths, as often as calls have them."""

_METHOD: Any = object()  # has the front offer the call to `enter` first

_LARGE = bytes(40_000)  # an answer; a few of them fill every buffer


class Broken(Exception):
    """The fault of a handler, which must end only its call."""


class Run:
    """A call that waits for the next turn of the event loop, as one that is answered by a run of the model."""

    def __init__(self, waiting: set["Run"], reply: Reply, error: RequestError | None):
        """Ends with `error`, or with an answer."""
        self._waiting = waiting
        self._reply = reply
        self._error = error
        waiting.add(self)
        asyncio.get_running_loop().call_soon(self._end)

    def abandon(self) -> None:
        """Ends the call without an answer."""
        self._waiting.discard(self)

    def _end(self) -> None:
        if self in self._waiting:
            self._waiting.remove(self)
            self._reply.fail(self._error) if self._error else self._reply.succeed(b"")


class Handlers:
    """One handler of each kind. They count what they did.

    Attributes:
        counts: calls by kind.
        methods: those of the dispatcher that `Routes` would make handlers for.
        side_thread: decompresses messages.
        waiting: calls without a task that are not answered yet.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.waiting: set[Run] = set()
        self.methods: dict[str, Any] = {}
        self.side_thread = SideThread()

    def admit(self, role: str | None, metadata: Callable[[], Metadata | None]) -> None:
        """Admits every caller, as a dispatcher without tokens does."""
        metadata()

    def refuse(self, name: str, error: RequestError, peer: Callable[[], str]) -> None:
        """Counts a call that reached no handler."""
        peer()
        self.counts[f"refused: {error.code.name}"] += 1

    def count_cancelled(self, name: str, call: Call) -> None:
        """Counts a call whose caller has gone while its message was decompressed."""
        self.counts["gone"] += 1

    def enter(self, method: object, encoded: bytes, call: Call, reply: Reply) -> Run | None:
        """Answers a call without a task: at once, soon, never if it is abandoned; None leaves it to its handler."""
        self.counts["entered"] += 1
        if len(encoded) % 4 == 0:
            return None
        run = Run(self.waiting, reply, InvalidRequest("the message is no request") if len(encoded) % 2 else None)
        if len(encoded) % 4 == 1:
            run.abandon()
            reply.succeed(encoded)
        return run

    def routes(self) -> Routes:
        """Returns the routes to the handlers."""
        routes = Routes(self, None)  # type: ignore[arg-type]
        routes.add({f"{_HEALTH}/Check": Unary(self._echo)}, public=True)
        routes.add(
            {
                f"{_DIGITS}/Recognize": Unary(self._fail, _METHOD),
                f"{_DIGITS}/RecognizeBatch": Unary(self._break),
                f"{_DIGITS}/ReportTruth": Unary(self._wait),
                f"{_DIGITS}/RecognizeStream": Streaming(self._echo_all),
                f"{_INFER}/ModelStreamInfer": Streaming(self._flood),
                f"{_HEALTH}/Watch": Streaming(self._watch, endless=True),
            }
        )
        return routes

    async def _echo(self, encoded: bytes, call: Call) -> bytes:
        await asyncio.sleep(0)
        self.counts["echoed"] += 1
        return encoded

    async def _fail(self, encoded: bytes, call: Call) -> bytes:
        self.counts["failed"] += 1
        raise InvalidRequest("the message is no request")

    async def _break(self, encoded: bytes, call: Call) -> bytes:
        self.counts["broken"] += 1
        raise Broken

    async def _wait(self, encoded: bytes, call: Call) -> bytes:
        self.counts["waits"] += 1
        await asyncio.Event().wait()
        raise AssertionError

    async def _echo_all(self, requests: AsyncIterator[bytes], write: Write, call: Call) -> None:
        async for request in requests:
            self.counts["stream echoed"] += 1
            if request == bytes(3):
                raise Broken
            await write(request)

    async def _flood(self, requests: AsyncIterator[bytes], write: Write, call: Call) -> None:
        await anext(requests, b"")
        for _ in range(20):
            self.counts["stream flooded"] += 1
            await write(_LARGE)

    async def _watch(self, requests: AsyncIterator[bytes], write: Write, call: Call) -> None:
        await anext(requests, b"")
        self.counts["watches"] += 1
        await write(b"")
        await asyncio.Event().wait()
