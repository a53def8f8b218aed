"""Certifies a model's answers to mail: single digits, and fields of two to ten digits."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from training.certify import RISK, certify
from training.dataset import NO_DIGIT
from training.evaluate import DEFAULT_ERROR, ERRORS, FIELD_ERRORS
from training.mail import Answers, Mail

POSTCODE = 5  # digits; of all made-up fields, only the thresholds of this length are printed
ACCEPTS_NOTHING = f"a service accepts no digit of this version at its default target error rate of {DEFAULT_ERROR:.1%}"


def certify_mail(mail: Mail, answers: Answers, risk: float = RISK) -> dict[str, Any]:
    """Certifies thresholds for digits and fields on mail that the model was not trained on.

    Args:
        mail: the mail.
        answers: the model's answers to its images.
        risk: probability that a guarantee fails, separately for each threshold.

    Returns:
        Entries of the run record:

        - "thresholds": by target error rate, the fields of `certify.Threshold`, or None.
        - "fields": by number of digits, the number of "fields" and their "thresholds".
        - "risk".
        - "certified": number of "images", and of the "writers" of their digits or None.
    """
    digits = mail.digits
    fields = {
        str(length): {
            "fields": len(images),
            "thresholds": certify_answers(
                *answers.fields(images), FIELD_ERRORS, risk, length, mail.writers_of(images[:, 0])
            ),
        }
        for length, images in mail.fields.items()
    }
    known = mail.writers_of(np.flatnonzero(mail.labels != NO_DIGIT))
    return {
        "thresholds": certify_answers(
            answers.confidence[digits], answers.correct[digits], ERRORS, risk, writers=mail.writers_of(digits)
        ),
        "fields": fields,
        "risk": risk,
        "certified": {"images": len(mail.labels), "writers": None if known is None else len(np.unique(known))},
    }


def certify_answers(
    confidence: np.ndarray,
    correct: np.ndarray,
    targets: Iterable[float],
    risk: float = RISK,
    length: int = 1,
    writers: np.ndarray | None = None,
) -> dict[str, dict[str, Any] | None]:
    """Certifies a threshold for each target error rate; see `certify.certify` for the arguments.

    It also certifies fields whose confidences come from elsewhere, such as a lexicon.

    Returns:
        By target error rate, the fields of `certify.Threshold`; None where none can be certified.
    """
    found = {str(target): certify(confidence, correct, target, risk, length, writers) for target in targets}
    return {target: None if threshold is None else asdict(threshold) for target, threshold in found.items()}


def default_target(record: dict[str, Any]) -> str | None:
    """Returns the error rate whose threshold a service uses for callers that name none; None if it accepts nothing.

    Args:
        record: a run record, or what `certify_mail` returns.
    """
    certified = [target for target, found in record["thresholds"].items() if found]
    return max((target for target in certified if float(target) <= DEFAULT_ERROR), key=float, default=None)


def accepts_by_default(record: dict[str, Any]) -> bool:
    """Tests if a version accepts any digit for callers that name no target error rate; see `default_target`."""
    return default_target(record) is not None


def refuse(confidence: np.ndarray, whole: np.ndarray | None) -> np.ndarray:
    """Returns the confidences, (N,), with 0 where `whole`, (N,) bool, is False: no threshold accepts these answers."""
    return confidence if whole is None else np.where(whole, confidence, np.zeros_like(confidence))


def print_thresholds(unit: str, thresholds: Mapping[str, dict[str, Any] | None], reasons: Mapping[str, str]) -> None:
    """Prints the certified thresholds of digits or fields, with what each accepts.

    Args:
        unit: what is certified: "digits" or "fields of 5".
        thresholds: by target error rate, the fields of `certify.Threshold`, with the effect on test images if there are any.
        reasons: by target error rate, why there is no threshold; a reason may be unknown.
    """
    for target, found in thresholds.items():
        promise = f"certify    {unit}, error at most {float(target):.1%}:"
        if found is None:
            print(f"{promise} no threshold can be certified{f': {reasons[target]}' if target in reasons else ''}")
            continue
        by_writer = f" ({found['by_writer']:.2%} by writer)" if found["by_writer"] is not None else ""
        accepted = f"accepted {found['coverage']:.2%}, {found['errors']:,} wrong"
        if "test_coverage" in found:
            test = f"test accepted {found['test_coverage']:.2%}, {found['test_errors']} wrong"
            accepted = f"held-out accepted {found['coverage']:.2%}, {test}"
        print(f"{promise} threshold {found['threshold']:.4f}{by_writer}, {accepted}")
