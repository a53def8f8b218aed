"""A name server on loopback, in the place of the cluster's: what it answers changes as pods come and go."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_A, _IN = 1, 1
_TTL_SECONDS = 1


class Names:
    """Whatever the name, its addresses are these.

    Attributes:
        addresses: of IPv4; change them at any time.
        port: of 127.0.0.1, by UDP.
    """

    def __init__(self, asked: socket.socket, addresses: list[str]):
        self.addresses = addresses
        self.port: int = asked.getsockname()[1]
        self._asked = asked

    def answer(self) -> None:
        """Answers until there is a datagram of nothing."""
        while True:
            query, who = self._asked.recvfrom(4096)
            if not query:
                return
            self._asked.sendto(_reply(query, self.addresses), who)


def _reply(query: bytes, addresses: list[str]) -> bytes:
    """The answer to a question for addresses; one without any to other questions. Source: RFC 1035, 4.1."""
    end = query.index(b"\0", 12) + 5  # of the only question: labels, a zero, type and class
    kind, _ = struct.unpack(">HH", query[end - 4 : end])
    found = addresses if kind == _A else []
    header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(found), 0, 0)  # an answer, by who knows it, without error
    records = b"".join(
        struct.pack(">HHHIH", 0xC00C, _A, _IN, _TTL_SECONDS, 4) + socket.inet_aton(address) for address in found
    )
    return header + query[12:end] + records


@contextmanager
def name_server(*addresses: str) -> Iterator[Names]:
    """One that answers with these addresses at first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind(("127.0.0.1", 0))
        names = Names(asked, list(addresses))
        answering = threading.Thread(target=names.answer, name="names", daemon=True)
        answering.start()
        yield names
        asked.sendto(b"", asked.getsockname())
        answering.join(5)
