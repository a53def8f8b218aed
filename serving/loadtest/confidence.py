"""The confidence with which a sample of calls shows that a percentile of the latency keeps a limit.

"p99 <= 20 ms" says that at most 1 % of all calls take longer. If that were false, a sample of n calls would have as few late
calls as it has, k, with at most the probability P(X <= k). X is binomial with n tries at 1 %. The confidence is one minus
this probability (Clopper and Pearson, 1934). The calls are taken as independent. Calls that wait in one queue are not, so
a longer measurement says more than a faster one.
"""

import math

CONFIDENCE = 0.99


def confidence(calls: int, late: int, percentile: float) -> float:
    """Returns the confidence, 0 to 1, that the percentile keeps a limit that `late` of `calls` calls exceeded."""
    return 1 - _at_most(late, calls, 1 - percentile / 100)


def calls_needed(late: int, percentile: float) -> int:
    """Returns the smallest number of calls that shows the percentile with CONFIDENCE, if `late` of them exceed the limit."""
    share = 1 - percentile / 100
    too_few, enough = late, late + 1
    while _at_most(late, enough, share) > 1 - CONFIDENCE:
        too_few, enough = enough, enough * 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if _at_most(late, middle, share) > 1 - CONFIDENCE:
            too_few = middle
        else:
            enough = middle
    return enough


def _at_most(most: int, tries: int, probability: float) -> float:
    """Returns the probability of at most `most` successes in independent tries.

    Adds the terms of the shorter tail from its largest one on, so that neither end of the sum underflows.
    """
    if most >= tries:
        return 1.0
    if most > tries * probability:
        return 1 - _at_most(tries - most - 1, tries, 1 - probability)
    odds, total = probability / (1 - probability), 0.0
    term = math.exp(  # of `most` successes; in logarithms, because the factors exceed a float
        math.lgamma(tries + 1)
        - math.lgamma(most + 1)
        - math.lgamma(tries - most + 1)
        + most * math.log(probability)
        + (tries - most) * math.log1p(-probability)
    )
    for successes in range(most, -1, -1):
        total += term
        term *= successes / ((tries - successes + 1) * odds)
        if term < total * 1e-12:
            break
    return total
