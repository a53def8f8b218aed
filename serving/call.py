"""What the path of a request needs to know of the call that brought it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.security.tokens import Client

if TYPE_CHECKING:
    from serving.telemetry.spans import CallSpan


@dataclass(slots=True)
class Call:
    """One call, as its way through the service sees it.

    Attributes:
        deadline: when the answer is of no more use, on the clock of time.monotonic; infinite when the caller set none.
        client: who calls; None when tokens are not asked for.
        span: of the call, or of the stream that it came by; None when calls are not traced.
        model: name of the model that it was routed to; empty until then.
        version: of that model.
        images: how many it brought there.
    """

    deadline: float = math.inf
    client: Client | None = None
    span: "CallSpan | None" = None
    model: str = ""
    version: str = ""
    images: int = 0
