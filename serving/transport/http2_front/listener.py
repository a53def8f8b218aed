"""The sockets that clients connect to."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from serving.ports import listen
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

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
        self._listening = listen(host, port, "gRPC", shared=self._shares_port)
        for listening in self._listening:
            # Inherited by connections. Otherwise an answer that follows a window update waits for its acknowledgement,
            # which the client's kernel delays by 40 ms.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return int(self._listening[0].getsockname()[1])

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
