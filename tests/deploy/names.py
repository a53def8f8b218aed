"""A DNS server on loopback that replaces the cluster's. Its answers change as pods start and stop."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_A, _IN = 1, 1
_TTL_SECONDS = 1


class Names:
    """Answers each query for IPv4 addresses with the same list, for any name.

    Attributes:
        addresses: the answer; tests may change it at any time.
        port: UDP, on 127.0.0.1.
    """

    def __init__(self, listening: socket.socket, addresses: list[str]):
        self.addresses = addresses
        self.port: int = listening.getsockname()[1]
        self._socket = listening

    def answer(self) -> None:
        """Answers queries until an empty datagram arrives."""
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(_reply(query, self.addresses), client)


def _reply(query: bytes, addresses: list[str]) -> bytes:
    """Returns the response to a query; an empty one unless it asks for IPv4 addresses. Source: RFC 1035, 4.1."""
    end = query.index(b"\0", 12) + 5  # end of the only question: labels, a zero, type and class
    kind, _ = struct.unpack(">HH", query[end - 4 : end])
    answers = addresses if kind == _A else []
    header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(answers), 0, 0)  # flags: response, authoritative, no error
    records = b"".join(
        struct.pack(">HHHIH", 0xC00C, _A, _IN, _TTL_SECONDS, 4) + socket.inet_aton(address) for address in answers
    )
    return header + query[12:end] + records


@contextmanager
def name_server(*addresses: str) -> Iterator[Names]:
    """Runs a server that first answers with these addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        names = Names(listening, list(addresses))
        answering = threading.Thread(target=names.answer, name="names", daemon=True)
        answering.start()
        try:
            yield names
        finally:  # also after a failed test, whose thread would go on reading from the number of the closed socket
            listening.sendto(b"", listening.getsockname())
            answering.join(5)
