"""One attack as a case of the suite."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.robustness.target import Target
from tests.support.service import ROOT

Attack = Callable[[Target], Awaitable[Counter[str]]]
"""Harms a target, and counts the outcomes of what it did, such as status codes."""

BOTH = ("http2", "grpcio")

_LEXICONS = str(ROOT / "serving" / "samples" / "lexicons")


def flags(*more: str, workers: int = 1) -> tuple[str, ...]:
    """Returns flags of a service that allows all that callers can ask for, and follows its model directory closely."""
    return "--workers", str(workers), "--model-control", "--lexicons", _LEXICONS, "--poll-seconds", "0.3", *more


@dataclass(frozen=True)
class Limits:
    """What the service may look like during an attack and after it.

    Attributes:
        peak_megabytes: resident memory of all its processes at any time.
        kept_megabytes: resident memory that an attack may leave behind.
        polite: codes of the polite caller that are right.
        same_processes: False where the attack itself ends processes.
    """

    peak_megabytes: float = 400.0
    kept_megabytes: float = 100.0
    polite: frozenset[str] = frozenset({"OK"})
    same_processes: bool = True


# The front grpcio keeps some 250 MB of buffers after many large messages, and no more after more of them.
GRPCIO = Limits(peak_megabytes=500.0, kept_megabytes=260.0)

ENDING = Limits(
    peak_megabytes=500.0,
    polite=frozenset(
        {
            "OK",
            "UNAVAILABLE",
            "14 in the stream",
            "CANCELLED",
            "URLError",
            "ConnectionResetError",
            "RemoteDisconnected",
            "503",
        }
    ),
    same_processes=False,
)
"""Limits where the attack ends processes: calls and probes may fail for a moment, so that clients try again."""


@dataclass(frozen=True)
class Case:
    """An attack, and what must come of it.

    Attributes:
        name: what the attacker does.
        attack: does it.
        right: outcomes that are right; empty if the attack has none. At least one must come.
        fronts: fronts that promise to bear the attack.
        flags: of the service. Cases with the same flags share one.
        limits: on the service.
        log_read: False for a log whose pipe nobody reads.
    """

    name: str
    attack: Attack = field(repr=False)
    right: frozenset[str] = frozenset()
    fronts: tuple[str, ...] = BOTH
    flags: tuple[str, ...] = flags()
    limits: Limits = Limits()
    log_read: bool = True

    def __str__(self) -> str:
        return self.name.replace(" ", "_")
