"""The ports that the service listens on: their names, what is told when one can't be had, and how several share one."""

import contextlib
import socket
from collections.abc import Iterator

from serving.errors import CannotStart


class PortTaken(CannotStart):
    """A port that the server was told to listen on can't be had."""


def address(host: str, port: int) -> str:
    """HOST:PORT, where the colons of IPv6 need brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def reserve(host: str, port: int) -> Iterator[int]:
    """Holds a port, which only sockets of this user with SO_REUSEPORT can listen on meanwhile, and gives its number.

    Raises:
        PortTaken: it can't be had.
    """
    with contextlib.ExitStack() as held:
        try:
            for family, kind, _, _, place in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                reserving = held.enter_context(socket.socket(family, kind))
                if family == socket.AF_INET6:
                    reserving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # Bound first as one who shares with nobody, but for connections that are gone: so a taken port shows.
                reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                reserving.bind((place[0], port, *place[2:]))
                reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                port = reserving.getsockname()[1]
        except OSError as error:
            raise PortTaken(f"cannot listen on {address(host, port)} for gRPC: {error.strerror}") from error
        yield port
