"""An HTTP server that always answers quick requests, whatever slow or many clients do.

It runs on an event loop in a thread of its own, so a client that waits costs a socket and no thread. Where there is no room,
the client that has waited longest gives way to the newest: a probe sends its request at once and is answered before its
turn comes, however many clients send nothing, send slowly, or take no answer.

Each page is made on one thread of its own, so a slow page delays no other. Requests that wait for the same page share it.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from serving.ports import BACKLOG

log = logging.getLogger(__name__)

_MAX_READING = 256  # clients whose request has not arrived completely
_MAX_ANSWERED = 64  # clients of a page that wait for it, or have not taken it yet
_HEAD_BYTES = 16_384  # of a request
_READING_SECONDS = 5.0  # from the connection to the end of the request
_ANSWERING_SECONDS = 15.0  # from there to the last byte of the answer
_MAX_PAUSE_SECONDS = 1.0  # between two makings of a page

# A connection that is closed with unread bytes is reset, which may take the answer from its client.
_LINGERING_SECONDS = 1.0
_LINGERING_BYTES = 1 << 18


class Answer(NamedTuple):
    """The answer to a request."""

    status: HTTPStatus
    body: bytes
    headers: Mapping[str, str]


class Page(NamedTuple):
    """A page.

    Attributes:
        form: returns the form of the page that the headers of a request ask for; requests for one form share the page.
        make: makes the page in a form. It is called on the page's own thread.
    """

    form: Callable[[Mapping[str, str]], Hashable]
    make: Callable[[Any], Answer]


def text(status: HTTPStatus, body: str) -> Answer:
    """Returns an answer of plain text."""
    return Answer(status, body.encode(errors="backslashreplace"), {"Content-Type": "text/plain; charset=utf-8"})


class BoundedHttp:
    """Answers GET and HEAD, one request for each connection, on its own thread until it is closed."""

    def __init__(self, listening: list[socket.socket], pages: Mapping[str, Page], unknown: str):
        """Starts to answer.

        Args:
            listening: the listening sockets, which the server closes.
            pages: the pages by path.
            unknown: the text for any other path.
        """
        self._listening = listening
        self._pages = {path: _SharedPage(path, page) for path, page in pages.items()}
        self._unknown = unknown
        self._reading = _Room(_MAX_READING)
        self._loop = asyncio.new_event_loop()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering and closes the port."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()
        for page in self._pages.values():
            page.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._answer_until_closed())

    async def _answer_until_closed(self) -> None:
        servers = [  # start_server listens once more, with a shorter backlog by default
            await asyncio.start_server(self._serve, sock=one, limit=_HEAD_BYTES, backlog=BACKLOG) for one in self._listening
        ]
        await self._closed.wait()
        for server in servers:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one client, or disconnects it without an answer once it is too slow."""
        try:
            with self._reading.place():
                async with asyncio.timeout(_READING_SECONDS):
                    try:
                        method, path, headers = await _read_head(reader)
                    except _Refused as refused:
                        await _send(writer, "GET", text(refused.status, f"{refused}\n"))
                        return await _linger(reader, writer)
            async with asyncio.timeout(_ANSWERING_SECONDS):
                await self._answer(writer, method, path, headers)
            await _linger(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            pass  # the client has gone, or had to go
        except Exception:
            log.exception("an HTTP request failed")
        finally:
            writer.transport.abort()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, headers: Mapping[str, str]) -> None:
        if method not in ("GET", "HEAD"):
            await _send(writer, method, text(HTTPStatus.NOT_IMPLEMENTED, "expected GET or HEAD\n"))
        elif page := self._pages.get(path):
            with page.room.place():
                await _send(writer, method, await page.get(headers))
        else:
            await _send(writer, method, text(HTTPStatus.NOT_FOUND, f"{self._unknown}\n"))


class _Room:
    """The clients in one stage. Beyond the limit, the one that has been there longest is disconnected."""

    def __init__(self, limit: int):
        self._limit = limit
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order of their arrival

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Gives the current task a place while the block runs."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks[task] = None
        if len(self._tasks) > self._limit:
            oldest = next(iter(self._tasks))
            del self._tasks[oldest]
            oldest.cancel()
        try:
            yield
        finally:
            self._tasks.pop(task, None)


class _SharedPage:
    """A page that is made once at a time, for all who wait for one form of it."""

    def __init__(self, path: str, page: Page):
        self._page = page
        self.room = _Room(_MAX_ANSWERED)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"http {path}")
        self._executor.submit(int).result()  # starts the thread, while threads can still be started
        self._turn = asyncio.Lock()
        self._next: dict[Hashable, asyncio.Future[Answer]] = {}  # not begun yet, by form
        self._making: set[asyncio.Task[None]] = set()

    async def get(self, headers: Mapping[str, str]) -> Answer:
        """Returns the page as it is now or later, never as it was before the call."""
        form = self._page.form(headers)
        if form not in self._next:
            self._next[form] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(self._make(form))
            self._making.add(task)
            task.add_done_callback(self._making.discard)
        return await asyncio.shield(self._next[form])

    async def _make(self, form: Hashable) -> None:
        async with self._turn:
            answer, begun = self._next.pop(form), time.monotonic()
            try:
                made = await asyncio.get_running_loop().run_in_executor(self._executor, self._page.make, form)
            except Exception:
                log.exception("a page could not be made")
                made = text(HTTPStatus.INTERNAL_SERVER_ERROR, "the page could not be made; the log says why\n")
            answer.set_result(made)
            # However often a page is asked for, making it takes at most half of the time.
            await asyncio.sleep(min(time.monotonic() - begun, _MAX_PAUSE_SECONDS))

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Refused(Exception):
    """The request can't be understood."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    """Reads a request, without a body.

    Returns:
        Method, path, and headers by name in lower case.

    Raises:
        _Refused: it is no request, or it is too large.
        EOFError: the client has gone.
    """
    lines: list[str] = []
    size = 0
    while not lines or lines[-1]:
        try:
            line = await reader.readline()
        except ValueError:  # longer than the limit of the reader
            line = b""
            size = _HEAD_BYTES
        size += len(line)
        if size >= _HEAD_BYTES:
            raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"expected a request below {_HEAD_BYTES} bytes")
        if not line.endswith(b"\n"):
            raise EOFError
        lines.append(line.decode("latin-1").rstrip("\r\n"))
        if len(lines) == 1:
            method, target = _parse_request_line(lines[0])
    headers = dict(line.partition(":")[::2] for line in lines[1:-1])
    return method, target, {name.strip().lower(): value.strip() for name, value in headers.items()}


def _parse_request_line(line: str) -> tuple[str, str]:
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise _Refused(HTTPStatus.BAD_REQUEST, "expected a request of HTTP/1.1, such as: GET /metrics HTTP/1.1")
    try:
        return words[0], urlsplit(words[1]).path
    except ValueError:
        raise _Refused(HTTPStatus.BAD_REQUEST, "the path is not one of a URL") from None


async def _send(writer: asyncio.StreamWriter, method: str, answer: Answer) -> None:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        "Server: digits",
        f"Date: {formatdate(usegmt=True)}",
        "Connection: close",
        f"Content-Length: {len(answer.body)}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if method != "HEAD":
        writer.write(answer.body)
    writer.transport.set_write_buffer_limits(high=0)
    await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends the answer, then discards what the client still sends for a moment."""
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGERING_SECONDS):
            discarded = 0
            while discarded < _LINGERING_BYTES and (more := await reader.read(_HEAD_BYTES)):
                discarded += len(more)
