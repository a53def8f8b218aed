"""Turns of the event loop for others, during long work on it."""

import asyncio
import time

_SECONDS = 0.002  # of work in a row


class Turns:
    """Lets others have the event loop after each two milliseconds of work."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    async def pause(self) -> None:
        """Gives way if that is due; call it between two parts of the work."""
        if time.monotonic() - self._began > _SECONDS:
            await asyncio.sleep(0)
            self._began = time.monotonic()
