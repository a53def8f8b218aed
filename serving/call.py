"""What the path of a request needs to know of the call that brought it."""

import math
from dataclasses import dataclass

from serving.access import Client


@dataclass(slots=True)
class Call:
    """One call, as its way through the service sees it.

    Attributes:
        deadline: when the answer is of no more use, on the clock of time.monotonic; infinite when the caller set none.
        client: who calls; None when tokens are not asked for.
    """

    deadline: float = math.inf
    client: Client | None = None
