"""The order to stop, and the signals that give it; the same for a server alone and for a supervisor."""

import asyncio
import logging
import signal
from dataclasses import dataclass

from serving.settings import Settings
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

# What SIGINT leaves of the grace: enough for the runs of the model that are under way.
_INTERRUPTED_GRACE_SECONDS = 0.5


@dataclass(frozen=True)
class Stop:
    """The order to stop: how long to go on answering first, and how long the calls in flight may take then.

    The first one that comes begins it; any that comes later cuts it short.
    """

    drain_seconds: float
    grace_seconds: float


def stops_by_signal(settings: Settings) -> "asyncio.Queue[Stop]":
    """Where SIGTERM (drain) and SIGINT (Ctrl-C: skip the drain, and while stopping cut that short) come out as orders.

    SIGTERM may well come twice, as `make` and a process group pass it on, and is one.
    """
    stops: asyncio.Queue[Stop] = asyncio.Queue()
    received: set[signal.Signals] = set()

    def order(number: signal.Signals) -> None:
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
        asyncio.get_running_loop().add_signal_handler(number, order, number)
    return stops
