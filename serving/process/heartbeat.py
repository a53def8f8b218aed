"""Detects an event loop that hangs, from another thread."""

import asyncio
import threading

# A turn takes milliseconds. A brief standstill is no reason for a restart: probes try more than once.
_TURN_SECONDS = 2.0


class Heartbeat:
    """Watches the event loop on which it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def lost(self) -> str:
        """Waits up to two seconds for one turn of the event loop; call it from another thread.

        Returns:
            The reason why there was no turn; empty if there was one.
        """
        turned = threading.Event()
        try:
            self._loop.call_soon_threadsafe(turned.set)
        except RuntimeError:
            return "the event loop has ended"
        return "" if turned.wait(_TURN_SECONDS) else f"the event loop has not turned for {_TURN_SECONDS:g} s"
