"""Fails a test in which the event loop of a server was held."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.telemetry.loop_watchdog import Held, LoopWatchdog

# Processor time of the loop's thread in one turn, at most. What this finds takes ten times as long. A busy machine slows
# work down twofold; its pauses are no processor time.
_MOST_CPU_SECONDS = 0.05


@contextmanager
def loop_stays_free() -> Iterator[list[Held]]:
    """Watches the running loop in the block, and fails if a turn of it worked for long; names the place."""
    held: list[Held] = []
    with LoopWatchdog(held.append):
        yield held
    worst = max(held, key=lambda turn: turn.cpu_seconds, default=None)
    if worst:
        assert worst.cpu_seconds < _MOST_CPU_SECONDS, f"held for {worst.cpu_seconds:.3f} s of processor time:\n{worst.stack}"
