"""The generator's interface to the server under test: encodes requests, and sends them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.loadtest.plan import Plan

Images = NDArray[np.uint8]
Digits = tuple[int, ...]


class Outcome(NamedTuple):
    """The end of a call.

    Attributes:
        code: name of the status code; OK for an answer.
        digits: digits in the answer.
        details: message of the error, if there is no answer.
    """

    code: str
    digits: Digits = ()
    details: str = ""


class Caller(Protocol):
    """Sends calls over one connection, many at the same time."""

    async def call(self, request: bytes) -> Outcome:
        """Sends a call and waits for its end."""

    async def close(self) -> None:
        """Ends the calls in flight, and closes the connection."""


class Target(Protocol):
    """A server under test. It must be picklable: the processes of the test receive a copy."""

    @property
    def address(self) -> str:
        """host:port of the server."""

    def request(self, plan: Plan, images: Images) -> bytes:
        """Encodes a request of `images`, (plan.images, 28, 28) uint8. Called before the test, which measures no encoder."""

    def callers(self, plan: Plan) -> Sequence[Caller]:
        """Opens as many connections as the plan has. Call it on the event loop."""
