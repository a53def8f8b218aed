"""The calls that a load test sends, their rate, and its duration."""

from dataclasses import dataclass
from typing import Literal

Rpc = Literal["recognize", "batch", "stream", "field", "infer"]
Priority = Literal["live", "batch"]
Arrivals = Literal["poisson", "fixed"]

LATE_SECONDS = 0.01  # an event loop that serves a few dozen callers stays below, one that lacks CPU time does not


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One measurement. Set either `callers`, for a closed loop, or `rate`, for an open loop.

    Attributes:
        rpc: recognize (one image), batch (`images`, digits.v1), infer (`images`, Open Inference Protocol), stream (single
            images on an open stream) or field (`images` digits).
        images: images per call; 1 for recognize and stream.
        callers: callers that send the next call after the answer to the last; for streams, the calls in flight.
        rate: calls per second, sent even if the answers fall behind.
        arrivals: arrivals in an open loop: at fixed intervals, or at random (Poisson), like calls of independent senders.
        seconds: duration of the measurement.
        warmup_seconds: duration of the load before it, which is not counted.
        late_seconds: delay of the sender beyond which the calls of the window are discarded; see `lateness`.
        timeout_seconds: deadline of each call.
        model: name of the model; empty for the server's default.
        priority: of all calls.
        connections: connections per process.
        seed: seed of the random arrivals and of the images in the requests.
    """

    rpc: Rpc = "recognize"
    images: int = 1
    callers: int | None = None
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    seconds: float = 10.0
    warmup_seconds: float = 2.0
    late_seconds: float = LATE_SECONDS
    timeout_seconds: float = 5.0
    model: str = ""
    priority: Priority = "live"
    connections: int = 8
    seed: int = 0
