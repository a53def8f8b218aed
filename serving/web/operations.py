"""The HTTP port for operators: /metrics for Prometheus, /healthz and /readyz for probes."""

import contextlib
import gzip
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from serving.feedback.accuracy import AccuracyCollector
from serving.feedback.drift import DriftCollector
from serving.ports import PortTaken, address

log = logging.getLogger(__name__)

# Timeout of a client, from its connection to the last byte of its answer. A timeout per byte would let clients that send a
# byte now and then hold all slots forever.
_TIMEOUT_SECONDS = 5.0

# Clients at a time, each with a thread: one that hangs must not block a scrape, and a thousand must not fill the memory.
_MAX_CLIENTS = 100

_POLL_SECONDS = 0.1  # between checks for a shutdown and for timeouts


class HttpServer:
    """Answers HTTP on its own port, in its own threads, until it is closed.

    /healthz and /readyz answer 200, or 503 with the reason. /metrics collects the metrics for each scrape.

    Attributes:
        port: the port on which it listens; the actual one if 0 was asked for.
    """

    def __init__(self, host: str, port: int, metrics: Collector, *, lost: Callable[[], str], unready: Callable[[], str]):
        """Starts to listen and to answer.

        Args:
            host: address to listen on.
            port: port to listen on; 0 takes any free port.
            metrics: collected for every scrape, in a thread of this server; accuracy and drift are derived from them.
            lost: returns the reason why the process should be restarted, empty if it is alive; called in a thread of
                this server.
            unready: returns the reason why the service accepts no traffic, empty if it does; called in such a thread.

        Raises:
            PortTaken: the port is taken or not allowed.
        """
        try:
            self._server = _Server(host, port, DriftCollector(AccuracyCollector(metrics)), lost, unready)
        except OSError as error:
            raise PortTaken(f"cannot listen on {address(host, port)} for metrics: {error.strerror}") from error
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), name="http", daemon=True).start()

    def close(self) -> None:
        """Stops answering and closes the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True  # else a restart fails until the kernel forgets the last connections
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, metrics: Collector, lost: Callable[[], str], unready: Callable[[], str]):
        self.metrics = metrics
        self.lost = lost
        self.unready = unready
        self._slots = threading.Semaphore(_MAX_CLIENTS)
        self._deadlines: dict[Any, float] = {}  # of each client, by its socket; time.monotonic
        self._closing = threading.Lock()  # a socket is not closed while another thread shuts it down
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        super().__init__((host, port), _Handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._deadlines[request] = time.monotonic() + _TIMEOUT_SECONDS
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started, so no thread will release the slot
            self._slots.release()
            raise

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def service_actions(self) -> None:
        """Disconnects the clients past their deadline; a thread that reads from one of them sees the end of the stream."""
        now = time.monotonic()
        with self._closing:
            for request in [request for request, deadline in self._deadlines.items() if deadline <= now]:
                del self._deadlines[request]
                with contextlib.suppress(OSError):  # already disconnected
                    request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        with self._closing:
            self._deadlines.pop(request, None)
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("an HTTP client disconnected", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One client, one request: HTTP/1.0, so that no idle connection holds a thread."""

    server: _Server
    server_version = "digits"
    sys_version = ""  # the version of Python is no concern of a client

    def do_GET(self) -> None:
        match urlsplit(self.path).path:
            case "/metrics":
                self._send_metrics()
            case "/healthz":
                self._send_state(self.server.lost(), "alive")
            case "/readyz":
                self._send_state(self.server.unready(), "ready")
            case _:
                self._send(HTTPStatus.NOT_FOUND, "not found; this port has /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET  # noqa: N815 - http.server looks for these names

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the name is http.server's
        log.debug(format, *values)

    def _send_state(self, why_not: str, good: str) -> None:
        self._send(HTTPStatus.SERVICE_UNAVAILABLE if why_not else HTTPStatus.OK, f"{why_not or good}\n")

    def _send_metrics(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            page = encode(self.server.metrics)
        except Exception:
            log.exception("the metrics could not be collected")
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "the metrics could not be collected; the log says why\n")
        else:
            self._send(HTTPStatus.OK, page, content_type)

    def _send(self, status: HTTPStatus, body: str | bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if gzip_accepted(self.headers.get("Accept-Encoding", "")):
            content = gzip.compress(content, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
