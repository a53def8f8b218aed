"""Estimates how much more mail a certificate needs."""

import math

import numpy as np

from training.certify import upper_bound

HALF = 0.5  # share of the answers that the certificate should accept at least
MOST = 1_000  # times the present mail, or the mail that would do without an error; a larger need is no plan


def mail_needed(confidence: np.ndarray, correct: np.ndarray, target: float, risk: float) -> int | None:
    """Estimates how many answers are needed to certify a threshold that accepts at least half of them.

    The estimate supposes that more mail has errors at the same confidences and in the same proportions. It tries the most
    confident half of the answers, then 60 %, and so on to all.

    Args:
        confidence: (N,) confidence of each answer.
        correct: (N,) bool, True where the answer is correct.
        target: largest error rate wanted among the accepted answers.
        risk: probability that the guarantee fails.

    Returns:
        The number of answers, the present ones included; None if over a thousand times as many would not do, and over a
        thousand times as many as suffice without an error.
    """
    count, most = len(confidence), MOST * max(len(confidence), _needed_without_errors(target, risk))
    in_order = correct[np.argsort(-confidence, kind="stable")]
    needed = []
    for share in np.linspace(HALF, 1, 6):
        accepted = max(1, round(share * count))
        errors = int((~in_order[:accepted]).sum())
        times = 1.0
        while count * times <= most and upper_bound(errors * times, accepted * times, risk) > target:
            times *= 1.1
        if count * times <= most:
            needed.append(math.ceil(count * times))
    return min(needed, default=None)


def explain(unit: str, confidence: np.ndarray, correct: np.ndarray, target: float, risk: float) -> str:
    """Says why no threshold is certified for a target error rate, and how much more mail would do."""
    count, errors = len(confidence), int((~correct).sum())
    needed = mail_needed(confidence, correct, target, risk) if count else _needed_without_errors(target, risk)
    one = unit.replace("digits", "digit").replace("fields", "field")
    counted, are = (f"1 {one}", "is") if count == 1 else (f"{count:,} {unit}", "are")
    if needed is None:
        return f"{errors:,} of {counted} {are} misread, and more mail of this kind would not help"
    more = max(needed - count, 1)
    return f"{counted} ({errors:,} misread) {are} too few: about {more:,} more are needed to accept half of them"


def _needed_without_errors(target: float, risk: float) -> int:
    """Returns the least number of answers that certify a target, if all of them are accepted and correct."""
    return math.ceil(math.log(risk) / math.log(1 - target))
