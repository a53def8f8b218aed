"""The listening ports: their addresses, the error when one is taken, and the reservation of a port for several workers."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from serving.errors import CannotStart

# Either of them means all addresses of the machine, of both families, as with gRPC's own server.
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - no default, but what an operator may write

BACKLOG = 1024
"""Connections that a socket holds until they are accepted."""

_Endpoint: TypeAlias = tuple[Any, ...]  # host, port, and two more numbers with IPv6
_Configure: TypeAlias = Callable[[socket.socket, _Endpoint], None]

_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class PortTaken(CannotStart):
    """The server can't listen on a port of its settings."""


def address(host: str, port: int) -> str:
    """Returns HOST:PORT; an IPv6 address gets brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int, purpose: str, *, shared: bool = False) -> list[socket.socket]:
    """Listens on a port of every address of a host.

    Args:
        host: an address; or a name, for all its addresses; or 0.0.0.0 or ::, for all addresses of the machine, over IPv4 and
            IPv6 where it has both.
        port: the port; 0 takes any free port, the same one for all addresses.
        purpose: what the port is for, to name in errors.
        shared: other processes listen on the same port, by SO_REUSEPORT.

    Returns:
        The listening sockets, which do not block.

    Raises:
        PortTaken: the port is taken or not allowed, or the host is unknown.
    """

    def configure(one: socket.socket, endpoint: _Endpoint) -> None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignores closed connections
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        one.bind(endpoint)
        one.setblocking(False)
        one.listen(BACKLOG)

    return _bind_all(host, port, purpose, configure)


@contextlib.contextmanager
def reserve(host: str, port: int) -> Iterator[int]:
    """Holds a port while the block runs, and yields its number; 0 takes any free port.

    Meanwhile, only sockets of this user with SO_REUSEPORT can listen on the port.

    Raises:
        PortTaken: the port is taken or not allowed.
    """

    def configure(one: socket.socket, endpoint: _Endpoint) -> None:
        # Bound first without SO_REUSEPORT, so a taken port is an error. SO_REUSEADDR ignores closed connections.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(endpoint)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    reserving = _bind_all(host, port, "gRPC", configure)
    try:
        yield reserving[0].getsockname()[1]
    finally:
        for one in reserving:
            one.close()


def _bind_all(host: str, port: int, purpose: str, configure: _Configure) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing = OSError(errno.EADDRNOTAVAIL, "no address")
    try:
        for family, endpoint in _endpoints(host, port):
            try:
                one = _bind_one(family, (endpoint[0], port, *endpoint[2:]), configure)
            except OSError as error:
                if host not in _WILDCARDS or error.errno not in _NO_SUCH_FAMILY:
                    raise
                missing = error  # a machine without IPv6, or without IPv4
            else:
                bound.append(one)
                port = one.getsockname()[1]
        if not bound:
            raise missing
    except OSError as error:
        for one in bound:
            one.close()
        raise PortTaken(f"cannot listen on {address(host, port)} for {purpose}: {error.strerror}") from error
    return bound


def _bind_one(family: int, endpoint: _Endpoint, configure: _Configure) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:  # IPv4 has a socket of its own, so that its clients have plain addresses
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        configure(one, endpoint)
    except OSError:
        one.close()
        raise
    return one


def _endpoints(host: str, port: int) -> list[tuple[int, _Endpoint]]:
    """Returns the family and the socket address of each address of a host. Raises OSError."""
    hosts = _WILDCARDS if host in _WILDCARDS else (host,)
    found = [socket.getaddrinfo(one, port, type=socket.SOCK_STREAM) for one in hosts]
    return [*dict.fromkeys((int(family), endpoint) for each in found for family, _, _, _, endpoint in each)]
