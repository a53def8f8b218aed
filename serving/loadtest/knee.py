"""The most that a service carries before an objective breaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.loadtest.objectives import Objective, broken
from serving.loadtest.tally import Tally

_FALLING_BEHIND = 0.05  # of the calls that were due, or more, have not ended when the test does: a queue is growing
_ON_THEIR_WAY = 10  # calls, which tell of no queue
_CLOSE = 1.05  # the knee is between two rates that are no further apart


@dataclass(frozen=True)
class Step:
    """What came of one rate.

    Attributes:
        rate: calls a second that were due.
        answered: calls a second that were answered rightly.
        tally: what became of them.
        broken: the objectives that were.
    """

    rate: float
    answered: float
    tally: Tally
    broken: tuple[str, ...]


def judge(rate: float, tally: Tally, seconds: float, objectives: Sequence[Objective]) -> Step:
    """Whether a rate was carried for so many seconds."""
    why = broken(objectives, tally)
    answered = tally.answered / seconds
    if tally.calls - tally.ended > max(_FALLING_BEHIND * tally.calls, _ON_THEIR_WAY):
        why.append(f"falls behind: {tally.ended / seconds:,.0f} of {tally.calls / seconds:,.0f} calls a second end")
    return Step(rate, answered, tally, tuple(why))


def find_knee(carry_out: Callable[[float], Step], first_rate: float) -> tuple[Step | None, list[Step]]:
    """Doubles the rate until an objective breaks, then halves the gap, until it is small; what breaks one is tried twice.

    Args:
        carry_out: what comes of a rate.
        first_rate: calls a second.

    Returns:
        The highest step without a broken objective, None where the first rate breaks one; and all, each by its last try.
    """
    steps: list[Step] = []
    best: Step | None = None
    lowest_broken = None
    rate = first_rate
    while lowest_broken is None or (best is not None and lowest_broken / best.rate > _CLOSE):
        one = carry_out(rate)
        if one.broken:  # a moment's noise would end the search at a rate that is kept otherwise
            one = carry_out(rate)
        steps.append(one)
        if one.broken:
            lowest_broken = rate
        else:
            best = one
        if best is None:
            break
        rate = best.rate * 2 if lowest_broken is None else (best.rate * lowest_broken) ** 0.5
    return best, steps
