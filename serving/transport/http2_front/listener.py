"""The sockets that clients connect to."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from serving.ports import PortTaken, address
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_BACKLOG = 1024
_ACCEPTED_AT_ONCE = 64  # connections in one turn of the event loop
_OUT_OF_FILES_SECONDS = 1.0  # pause after the process has run out of file descriptors


class Listener:
    """Listens on one port of all addresses of a host."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[socket.socket, Any], None], *, shares_port: bool):
        """Listens nowhere yet.

        Args:
            loop: the event loop.
            take: takes each accepted socket, which does not block, and the client's endpoint.
            shares_port: other processes listen on the same port.
        """
        self._loop = loop
        self._take = take
        self._shares_port = shares_port
        self._listening: list[socket.socket] = []

    def bind(self, host: str, port: int) -> int:
        """Binds the port on every address of the host, and returns its number, also when the system chose it.

        Raises:
            PortTaken: the port is taken or not allowed.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, _, _, endpoint in dict.fromkeys(found):
                listening = socket.socket(family, kind)
                self._listening.append(listening)
                listening.setblocking(False)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Inherited by connections. Otherwise an answer that follows a window update waits for its acknowledgement,
                # which the client's kernel delays by 40 ms.
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._shares_port:
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:  # alone, "::" also takes connections over IPv4
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, len(found) > 1)
                listening.bind((endpoint[0], port, *endpoint[2:]))
                listening.listen(_BACKLOG)
                port = listening.getsockname()[1]
        except OSError as error:
            self._close()
            raise PortTaken(f"cannot listen on {address(host, port)} for gRPC: {error.strerror}") from error
        return port

    def start(self) -> None:
        """Accepts connections."""
        for listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def stop(self) -> None:
        """Accepts who is connected already, and nobody after."""
        for listening in self._listening:
            self._accept(listening)
        self._close()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, endpoint = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno == errno.EINVAL:  # shut down from outside: the worker has lost its supervisor
                    self._loop.remove_reader(listening)
                    return
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log_event(log, logging.ERROR, "accept_failed", f"can't accept connections: {error.strerror}")
                self._loop.remove_reader(listening)
                self._loop.call_later(_OUT_OF_FILES_SECONDS, self._accept_again, listening)
                return
            accepted.setblocking(False)
            self._take(accepted, endpoint)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def _close(self) -> None:
        for listening in self._listening:
            self._loop.remove_reader(listening)
            listening.close()
        self._listening.clear()
