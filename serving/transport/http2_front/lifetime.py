"""The time limits of a connection: first frame, taking of answers, keepalive, idleness, age."""

import enum
import math
import random
from typing import NamedTuple

from serving.transport.http2_front.limits import Limits

_AGE_JITTER = 0.1  # share of the age, so that connections that began together don't end together


class Action(enum.Enum):
    """What to do with a connection."""

    CLOSE = enum.auto()  # at once
    PING = enum.auto()
    ANNOUNCE = enum.auto()  # that the connection will end
    LEAVE = enum.auto()  # once its calls have ended


class Due(NamedTuple):
    """An action that is due, and the limit that the client has reached; None without fault of the client."""

    action: Action
    limit: str | None = None


class Lifetime:
    """Watches one connection. Times are on the clock of the event loop, in seconds."""

    def __init__(self, limits: Limits, began: float):
        """Starts with a connection that was accepted at `began`."""
        self._limits = limits
        self._began = began
        self._age = limits.age_seconds * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311 - no secret
        self._pinged = -math.inf
        self._active = began  # when a call was last open
        self._progressed = began  # when the client last took a part of an answer
        self._delivered = 0
        self._announced = self._left = False

    def check(self, now: float, *, heard: float, settled: bool, calls: int, delivered: int, untaken: int) -> Due | None:
        """Finds the action that is due; None for a connection that may go on.

        Args:
            now: the time.
            heard: when the client last sent anything.
            settled: the client's first frame has arrived.
            calls: open calls.
            delivered: bytes of answers that the client's machine has taken, from the beginning.
            untaken: bytes of answers that wait for the client.
        """
        limits = self._limits
        if calls:
            self._active = now
        if delivered > self._delivered or not untaken:
            self._progressed = now
        self._delivered = delivered
        if not settled and now - self._began > limits.preface_seconds:
            return Due(Action.CLOSE, "preface_time")
        if now - self._progressed > limits.answer_seconds:
            return Due(Action.CLOSE, "answer_time")
        if self._pinged > heard:
            if now - self._pinged > limits.keepalive_seconds:
                return Due(Action.CLOSE, "keepalive")
        elif now - heard > limits.keepalive_seconds:
            self._pinged = now
            return Due(Action.PING)
        if now - self._active > limits.idle_seconds:
            return self._leave("idle_time")
        return self._retire(now - self._began) if self._age else None

    def _leave(self, limit: str | None = None) -> Due | None:
        if self._left:
            return None
        self._left = True
        return Due(Action.LEAVE, limit)

    def _retire(self, age: float) -> Due | None:
        """Ends a connection of too great an age, without losing a call: it is announced one check before."""
        if age > self._age + self._limits.age_grace_seconds:
            return Due(Action.CLOSE)
        if age <= self._age:
            return None
        if self._announced:
            return self._leave()
        self._announced = True
        return Due(Action.ANNOUNCE)
