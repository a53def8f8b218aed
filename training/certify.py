"""Certifies confidence thresholds: fixed-sequence testing of a fixed grid, and a bound that treats writers as the units."""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit
from scipy.stats import t

RISK = 0.001  # default probability that the error of a certified threshold exceeds its target
# Thresholds in the order of their tests: from 1 down in twentieths of a logit, and last the product of ten digits of 1/10.
# They are exact in float32, so that float32 confidences compare alike in training and in the service.
GRID = np.unique(np.array([1e-10, *expit(np.arange(-140, 341) / 20), 1], np.float32))[::-1].astype(np.float64)
TOLERATED = 3  # errors that the first test should survive: some labels are wrong, and some errors are confident
CONFIDENT = 0.95  # share of the digits at which testing starts at the latest


@dataclass(frozen=True)
class Threshold:
    """A certified confidence threshold.

    Attributes:
        threshold: the lowest confidence that is accepted.
        coverage: share of the images it was certified on that it accepts.
        errors: number of wrong answers among these.
        by_writer: upper bound of the error with writers as the independent units; None if the writers are unknown. It is
            stated beside the threshold, and did not select it.
    """

    threshold: float
    coverage: float
    errors: int
    by_writer: float | None = None


def certify(
    confidence: np.ndarray,
    correct: np.ndarray,
    target: float,
    risk: float = RISK,
    length: int = 1,
    writers: np.ndarray | None = None,
) -> Threshold | None:
    """Finds the loosest threshold of `GRID` whose error is provably at most `target`.

    The guarantee: over random draws of these images, the error of the accepted images exceeds `target` in at most `risk`
    of the draws. It holds for images from the same distribution and for no others.

    The method is fixed-sequence testing. The thresholds of `GRID` are tested from strict to loose, until one fails. A
    threshold passes if the exact binomial upper bound of its error (Clopper & Pearson 1934, Biometrika 26, 404-413) at
    `risk` is at most `target`. The order is fixed before any image is seen. A false certificate must therefore pass the
    first threshold of the grid whose true error exceeds `target`, which is one test. Its risk needs no correction for the
    number of tests.

    The strictest thresholds accept so few images that they can't pass. Testing starts at the first threshold that accepts
    at least `first_count` images. This number does not depend on the images, but the place in the grid does:

    - If the start is not beyond the first threshold that must fail, that threshold is tested. Given the number of images
      that it accepts, its errors are binomial, and the bound is exact.
    - If the start is beyond it, the start is one test of a threshold that must fail. Few images reach the threshold before
      it, so its sample has a larger share of less confident images than the distribution. Errors are then more frequent
      than in a binomial sample, provided that errors do not get rarer as confidence falls.

    Limits: images are treated as independent, although several may come from one writer (`bound_by_writer` does not).
    A temperature fitted on the same images is one more parameter, which the bound does not count.

    Args:
        confidence: (N,) calibrated confidence in the answer, for images that the network was not trained on; 0 for answers
            that are never accepted.
        correct: (N,) bool, True where the answer is correct.
        target: largest error rate wanted among the accepted answers.
        risk: probability that the guarantee fails.
        length: digits per answer: 1, or more for fields.
        writers: (N,) number of the writer of each answer; None if unknown.

    Returns:
        The threshold, or None if the first test fails or can't pass. Of thresholds that accept the same images, it is the
        strictest.

    Source: Angelopoulos, Bates, Candès, Jordan & Lei 2021, Learn then Test, arXiv 2110.01052, section 2.3; Maurer, Hothorn
    & Lehmacher 1995, Multiple comparisons in drug clinical trials and preclinical assays: a-priori ordered hypotheses.
    """
    count, start = len(confidence), first_count(len(confidence), target, risk, length)
    if start is None:
        return None
    passed: tuple[float, int, int] | None = None
    for threshold, accepted, errors in zip(GRID, *_counts(confidence, correct), strict=True):
        if accepted < start or (passed and accepted == passed[1]):
            continue
        if upper_bound(errors, accepted, risk) > target:
            break
        passed = float(threshold), int(accepted), int(errors)
    if passed is None:
        return None
    threshold, accepted, errors = passed
    by_writer = None if writers is None else bound_by_writer(correct, confidence >= np.float64(threshold), writers, risk)
    return Threshold(threshold, accepted / count, errors, by_writer)


def first_count(count: int, target: float, risk: float, length: int = 1) -> int | None:
    """Returns the number of accepted answers at which testing starts, which depends on no answer.

    It is the number at which the test survives as many errors as possible, up to `TOLERATED`. A stricter start accepts
    fewer images, and one wrong label would end all testing. A looser start, at 95 % of the digits, would miss the thresholds
    of weaker networks. Fields of L digits start at 0.95 ** L of the fields at the latest, or at the number that survives
    no error.

    Args:
        count: number of answers.
        target: largest error rate wanted among the accepted answers.
        risk: probability that the guarantee fails.
        length: digits per answer.

    Returns:
        The number, or None if even `count` answers without an error can't pass.
    """
    needed = [_passing_count(errors, count, target, risk) for errors in range(TOLERATED + 1)]
    if needed[0] > count:
        return None
    return max((n for n in needed if n <= CONFIDENT**length * count), default=needed[0])


def upper_bound(errors: float, trials: float, risk: float) -> float:
    """Returns the exact upper confidence bound of an error probability, which is too low with probability `risk`.

    Source: Clopper & Pearson 1934, Biometrika 26, 404-413.
    """
    return 1.0 if errors >= trials else float(betaincinv(errors + 1, trials - errors, 1 - risk))


def bound_by_writer(correct: np.ndarray, accepted: np.ndarray, writers: np.ndarray, risk: float) -> float | None:
    """Returns an upper bound of the error of the accepted answers, with writers as the independent units.

    The errors of one writer resemble each other, so that N answers tell as much as fewer independent ones. The design effect
    is the ratio of both numbers. The bound of Clopper & Pearson is taken at the smaller number, which is also reduced for
    the few degrees of freedom of the design effect (the ratio of normal to t quantiles, squared). Few errors are accepted,
    and they estimate the design effect badly. The larger of two estimates counts: from the accepted answers, and from all.

    Args:
        correct: (N,) bool, True where the answer is correct.
        accepted: (N,) bool, True where the answer is accepted.
        writers: (N,) number of the writer of each answer.
        risk: probability that the bound is too low.

    Returns:
        The bound, or None if no answer is accepted or all are by one writer.

    Source: Korn & Graubard 1998, Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data, Survey Methodology 24, 193-201.
    """
    degrees = len(np.unique(writers[accepted])) - 1
    if degrees < 1:
        return None
    effect = max(1.0, _design_effect(~correct, writers), _design_effect(~correct[accepted], writers[accepted]))
    trials, errors = int(accepted.sum()), int((accepted & ~correct).sum())
    effective = trials / effect * (t.isf(risk, trials - 1) / t.isf(risk, degrees)) ** 2
    return upper_bound(errors * effective / trials, effective, risk)


def _passing_count(errors: int, most: int, target: float, risk: float) -> int:
    """Returns the least number of answers that pass with this number of errors; more than `most` if `most` do not pass."""
    counts = range(errors + 1, most + 1)
    return errors + 1 + bisect_left(counts, True, key=lambda count: upper_bound(errors, count, risk) <= target)


def _counts(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of answers that reach each threshold of `GRID`, and the number of errors among them."""
    reaching = [len(part) - np.searchsorted(np.sort(part), GRID) for part in (confidence, confidence[~correct])]
    return reaching[0], reaching[1]


def _design_effect(wrong: np.ndarray, writers: np.ndarray) -> float:
    """Returns the variance of the share of `wrong`, (N,) bool, between writers, relative to independent answers.

    The variance is that of a ratio of two totals over writers. Without an error, or with errors only, the effect is 1.
    """
    share = wrong.mean()
    if share in (0, 1):
        return 1.0
    _, of_answer = np.unique(writers, return_inverse=True)
    answers, errors = np.bincount(of_answer), np.bincount(of_answer, weights=wrong)
    units = len(answers)
    variance = units / max(units - 1, 1) * ((errors - share * answers) ** 2).sum() / len(wrong) ** 2
    return float(variance / (share * (1 - share) / len(wrong)))
