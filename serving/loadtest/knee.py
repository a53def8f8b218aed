"""Finds the knee: the highest rate that a service carries without missing an objective."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.loadtest.objectives import Objective, broken
from serving.loadtest.tally import Tally

# A queue is growing if more than this share of the calls that were due, and more than this number, have not ended with
# the test.
_MAX_UNENDED_SHARE = 0.05
_MAX_UNENDED_CALLS = 10

_TRIES = 3  # a moment's noise must not end the search at too low a rate

_RESOLUTION = 1.05  # the search ends once the lowest missed and the highest kept rate differ by less than this factor


@dataclass(frozen=True)
class Step:
    """The result of one rate.

    Attributes:
        rate: calls per second that were due.
        answered: calls per second with a right answer.
        tally: the results of the calls.
        broken: descriptions of the missed objectives; empty if none was, or the sender was late.
        sender_late: True if an objective was missed, but the sender was late so often that it may be its own fault.
    """

    rate: float
    answered: float
    tally: Tally
    broken: tuple[str, ...]
    sender_late: bool = False

    @property
    def kept(self) -> bool:
        """True if the service carried the rate with all objectives."""
        return not (self.broken or self.sender_late)


def judge(rate: float, tally: Tally, seconds: float, objectives: Sequence[Objective]) -> Step:
    """Judges if the service carried the rate, by the tally of a measurement that took `seconds`."""
    missed = broken(objectives, tally)
    answered = tally.answered / seconds
    if tally.due - tally.ended > max(_MAX_UNENDED_SHARE * tally.due, _MAX_UNENDED_CALLS):
        missed.append(f"falls behind: {tally.ended / seconds:,.0f} of {tally.due / seconds:,.0f} calls a second end")
    if missed and tally.sender_late:
        return Step(rate, answered, tally, (), sender_late=True)
    return Step(rate, answered, tally, tuple(missed))


def find_knee(carry_out: Callable[[float], Step], first_rate: float) -> tuple[Step | None, list[Step]]:
    """Doubles the rate until an objective is missed, then bisects. A rate counts as missed after three misses in a row.

    The search ends early at a rate at which the sender itself was late three times.

    Args:
        carry_out: measures a rate.
        first_rate: the first rate, calls per second.

    Returns:
        The step of the highest rate that keeps all objectives, None if no rate does; and all steps. A rate that
        was measured more than once has its last result.
    """
    steps: list[Step] = []
    best: Step | None = None
    lowest_broken = None
    rate = first_rate
    while lowest_broken is None or (best is not None and lowest_broken / best.rate > _RESOLUTION):
        one = _tried(carry_out, rate)
        steps.append(one)
        if one.sender_late:
            break
        if one.broken:
            lowest_broken = rate
        else:
            best = one
        if best is None:
            break
        rate = best.rate * 2 if lowest_broken is None else (best.rate * lowest_broken) ** 0.5
    return best, steps


def _tried(carry_out: Callable[[float], Step], rate: float) -> Step:
    """Measures a rate until it keeps all objectives, or has missed one, or found the sender late, _TRIES times."""
    missed = late = 0
    while True:
        one = carry_out(rate)
        missed += bool(one.broken)
        late += one.sender_late
        if one.kept or _TRIES in (missed, late):
            return one
