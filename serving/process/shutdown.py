"""Stop requests, and the signals that cause them, for a single server and for a supervisor."""

import asyncio
import logging
import signal
from dataclasses import dataclass

from serving.settings import Settings
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

# Grace after SIGINT during a shutdown: enough for the model runs in progress.
_INTERRUPTED_GRACE_SECONDS = 0.5


@dataclass(frozen=True)
class Stop:
    """A request to stop. The first one starts the shutdown; a later one cuts it short.

    Attributes:
        drain_seconds: time to keep answering new calls.
        grace_seconds: time for the calls in flight after the drain.
    """

    drain_seconds: float
    grace_seconds: float


def watch_signals(settings: Settings) -> "asyncio.Queue[Stop]":
    """Turns signals into stop requests, on the running event loop.

    SIGTERM drains. SIGINT (Ctrl-C) skips the drain; during a shutdown, it cuts the shutdown short. A second SIGTERM has no
    effect: `make` and a process group pass the same signal on.

    Returns:
        A queue that receives the stop requests.
    """
    stops: asyncio.Queue[Stop] = asyncio.Queue()
    received: set[signal.Signals] = set()

    def stop(number: signal.Signals) -> None:
        if not received:
            drain = settings.drain_seconds if number is signal.SIGTERM else 0.0
            log_event(
                log,
                logging.INFO,
                "draining",
                f"{number.name}: draining for {drain:g} s, then up to {settings.grace_seconds:g} s for calls in flight",
                signal=number.name,
                drain_seconds=drain,
                grace_seconds=settings.grace_seconds,
            )
            stops.put_nowait(Stop(drain, settings.grace_seconds))
        elif number is signal.SIGINT:
            log_event(log, logging.INFO, "interrupted", "SIGINT: stopping now", signal="SIGINT")
            stops.put_nowait(Stop(0.0, _INTERRUPTED_GRACE_SECONDS))
        received.add(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return stops
