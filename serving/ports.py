"""The listening ports: their addresses, the error when one is taken, and the reservation of a port for several workers."""

import contextlib
import socket
from collections.abc import Iterator

from serving.errors import CannotStart


class PortTaken(CannotStart):
    """The server can't listen on a port of its settings."""


def address(host: str, port: int) -> str:
    """Returns HOST:PORT; an IPv6 address gets brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def reserve(host: str, port: int) -> Iterator[int]:
    """Holds a port while the block runs, and yields its number; 0 takes any free port.

    Meanwhile, only sockets of this user with SO_REUSEPORT can listen on the port.

    Raises:
        PortTaken: the port is taken or not allowed.
    """
    with contextlib.ExitStack() as held:
        try:
            for family, kind, _, _, endpoint in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                reserving = held.enter_context(socket.socket(family, kind))
                if family == socket.AF_INET6:
                    reserving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # Bound first without SO_REUSEPORT, so a taken port is an error. SO_REUSEADDR ignores closed connections.
                reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                reserving.bind((endpoint[0], port, *endpoint[2:]))
                reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                port = reserving.getsockname()[1]
        except OSError as error:
            raise PortTaken(f"cannot listen on {address(host, port)} for gRPC: {error.strerror}") from error
        yield port
