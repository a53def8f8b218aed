"""What a load test is sent to, as its generator knows it: any server for which requests can be made and sent."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.loadtest.plan import Plan

Images = NDArray[np.uint8]
Digits = tuple[int, ...]


class Outcome(NamedTuple):
    """How a call ended.

    Attributes:
        code: the name of a status code, OK for an answer.
        digits: that the answer says.
        details: why there is none.
    """

    code: str
    digits: Digits = ()
    details: str = ""


class Caller(Protocol):
    """Sends calls over one connection, many at once."""

    async def call(self, request: bytes) -> Outcome:
        """Sends a call, and waits for its end."""

    async def close(self) -> None:
        """Ends what is on its way, and the connection."""


class Target(Protocol):
    """A server, and how it is called. It is sent to the processes of the test, so it can be pickled."""

    @property
    def address(self) -> str:
        """host:port."""

    def request(self, plan: Plan, images: Images) -> bytes:
        """The message of some images, (plan.images, 28, 28) uint8: encoded once, as encoders are not what is tested."""

    def callers(self, plan: Plan) -> Sequence[Caller]:
        """As many as the plan has connections, in a running event loop."""
