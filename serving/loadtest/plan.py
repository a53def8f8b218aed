"""What a load test sends, how, and how long."""

from dataclasses import dataclass
from typing import Literal

Rpc = Literal["recognize", "batch", "stream", "field", "infer"]
Arrivals = Literal["poisson", "fixed"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One measurement. Either `callers` or `rate` is given: a closed loop, or an open one.

    Attributes:
        rpc: recognize (one image), batch and infer (`images`, in digits.v1 and in the Open Inference Protocol), stream (one
            image after the other on an open stream), or field (`images` digits).
        images: in a call; 1 for recognize and stream.
        callers: that each send their next call when they have the answer to the last; on streams, the calls on their way.
        rate: calls a second, whether the answers keep up or not.
        arrivals: of the calls of an open loop: evenly spaced, or at random, as those of many independent senders are.
        seconds: how long is measured.
        warmup_seconds: how long is sent beforehand, and not counted.
        timeout_seconds: each call's deadline.
        model: name of the model; the server's default one when empty.
        connections: of each process.
        seed: of the random arrivals, and of where in the images each process begins.
    """

    rpc: Rpc = "recognize"
    images: int = 1
    callers: int | None = None
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    seconds: float = 10.0
    warmup_seconds: float = 2.0
    timeout_seconds: float = 5.0
    model: str = ""
    connections: int = 8
    seed: int = 0
