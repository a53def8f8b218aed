"""Waiting in turns of the event loop instead of time."""

import asyncio


async def turns(count: int) -> None:
    """Lets the event loop turn. Requests that arrive together meet in the batcher's queue within about ten turns."""
    for _ in range(count):
        await asyncio.sleep(0)
