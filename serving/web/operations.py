"""What operators read over HTTP, beside gRPC: /metrics for Prometheus, /healthz and /readyz for probes."""

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

# How long a client may take, from when it connects to the last byte of its answer, before it is cut off. Were it for each
# byte, clients that send one now and then would hold all places for good.
_PATIENCE_SECONDS = 5.0

# Clients at once, each of whom holds a thread: one that hangs must not block a scrape, nor a thousand use up the memory.
_MAX_CLIENTS = 100

# How often the server looks whether it is to close, and which clients are to be cut off.
_LOOK_SECONDS = 0.1


class HttpServer:
    """Answers on a port of its own, in threads of its own, from when it is made until it is closed.

    /healthz says 200 or 503 with the reason, and so does /readyz; /metrics whatever is collected then.

    Attributes:
        port: the port it listens on, also when the choice was left to the system.
    """

    def __init__(self, host: str, port: int, metrics: Collector, *, lost: Callable[[], str], unready: Callable[[], str]):
        """Listens, and answers.

        Args:
            host: address to listen on.
            port: 0 takes any free one.
            metrics: collected anew for every scrape, in a thread of this server; what they tell of accuracy and
                drift is added.
            lost: says why the process is to be restarted, and nothing when it lives; called in a thread of this server.
            unready: likewise, why the service wants no traffic.

        Raises:
            PortTaken: the port can't be listened on.
        """
        try:
            self._server = _Server(host, port, DriftCollector(AccuracyCollector(metrics)), lost, unready)
        except OSError as error:
            raise PortTaken(f"cannot listen on {address(host, port)} for metrics: {error.strerror}") from error
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(_LOOK_SECONDS,), name="http", daemon=True).start()

    def close(self) -> None:
        """Gives the port back."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True  # else a restart would have to wait until the last connections are forgotten
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, metrics: Collector, lost: Callable[[], str], unready: Callable[[], str]):
        self.metrics = metrics
        self.lost = lost
        self.unready = unready
        self._places = threading.Semaphore(_MAX_CLIENTS)
        self._ends: dict[Any, float] = {}  # when each client is to be cut off, by its socket
        self._closing = threading.Lock()  # no socket is closed while another thread, which would cut it off, has it in hand
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        super().__init__((host, port), _Handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._ends[request] = time.monotonic() + _PATIENCE_SECONDS
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was to be had, so none will give the place back
            self._places.release()
            raise

    def process_request_thread(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def service_actions(self) -> None:
        """Cuts off the clients whose time is up; whoever waits for one of them finds that it has hung up."""
        now = time.monotonic()
        with self._closing:
            for request in [request for request, end in self._ends.items() if end <= now]:
                del self._ends[request]
                with contextlib.suppress(OSError):  # it is gone already
                    request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        with self._closing:
            self._ends.pop(request, None)
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("an HTTP client went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One client, one request: HTTP/1.0, so that no idle connection holds a thread."""

    server: _Server
    server_version = "digits"
    sys_version = ""  # what Python this is, is nobody's business

    def do_GET(self) -> None:
        match urlsplit(self.path).path:
            case "/metrics":
                self._send_metrics()
            case "/healthz":
                self._send_state(self.server.lost(), "alive")
            case "/readyz":
                self._send_state(self.server.unready(), "ready")
            case _:
                self._send(HTTPStatus.NOT_FOUND, "there is /metrics, /healthz and /readyz\n")

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
