"""The context of one call: its deadline, its client, its trace; and the way back of a call that has no task."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from serving.errors import RequestError
from serving.peers import network_of
from serving.security.tokens import Client, Metadata

if TYPE_CHECKING:
    from serving.telemetry.spans import CallSpan

_SOURCES = 4096  # remembered: most calls come from a connection that has called before


class Source(NamedTuple):
    """Whom a call counts for where callers share what there is.

    Attributes:
        client: name of the authenticated client; where the server asks for no tokens, the network of the caller.
        connection: address and port of the caller: a client may have many connections.
    """

    client: str
    connection: str


@dataclass(slots=True)
class Call:
    """One call, or one request of a stream, on its way through the service.

    Attributes:
        deadline: on the clock of time.monotonic; infinite without a deadline.
        client: the authenticated client; None where the server asks for no tokens.
        span: the trace span of the call or of its stream; None without tracing.
        peer: returns the caller's address, for the log.
        metadata: returns the metadata of the call, which may name the caller's span.
        model: the model that the request was routed to; "" before.
        version: the version of that model.
        images: number of images in the request.
    """

    deadline: float = math.inf
    client: Client | None = None
    span: "CallSpan | None" = None
    peer: Callable[[], str] = str
    metadata: Callable[[], Metadata | None] = tuple
    model: str = ""
    version: str = ""
    images: int = 0

    @property
    def source(self) -> Source:
        """Whom the call counts for. Looked up when it is needed: most calls need not wait for a turn."""
        return _source(self.client.name if self.client else "", self.peer())


@functools.lru_cache(_SOURCES)
def _source(client: str, peer: str) -> Source:
    return Source(client or network_of(peer), peer)


class Reply(Protocol):
    """Takes the outcome of one call: exactly one of the two methods is called, once; neither after `Pending.abandon`."""

    def succeed(self, encoded: bytes, /) -> None:
        """Takes the encoded answer."""

    def fail(self, error: RequestError, /) -> None:
        """Takes the error that the call ends with."""


class Pending(Protocol):
    """A call that waits for its answer, or has just had it. It refers to its reply, so a front drops it with the answer."""

    def abandon(self) -> None:
        """Ends the call without an answer: its caller has gone, or its deadline has passed. Harmless after an answer."""
