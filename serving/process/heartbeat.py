"""Whether an event loop turns, as another thread sees it."""

import asyncio
import threading

# A turn takes milliseconds, and a brief standstill is nothing to be restarted for: probes ask more than once.
_TURN_SECONDS = 2.0


class Heartbeat:
    """The pulse of the event loop that it is made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def lost(self) -> str:
        """What has become of it, when it does not turn for two seconds; nothing when it does. From any other thread."""
        turned = threading.Event()
        try:
            self._loop.call_soon_threadsafe(turned.set)
        except RuntimeError:
            return "the event loop has ended"
        return "" if turned.wait(_TURN_SECONDS) else f"the event loop has not turned for {_TURN_SECONDS:g} s"
