"""Certifies a model's answers to labelled images: single digits, and fields of two to ten digits."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from training.certify import RISK, certify
from training.evaluate import DEFAULT_ERROR, ERRORS, FIELD_ERRORS, FIELD_LENGTHS, score, score_fields


def certify_images(
    probabilities: np.ndarray,
    labels: np.ndarray,
    risk: float = RISK,
    writers: np.ndarray | None = None,
    whole: np.ndarray | None = None,
) -> dict[str, Any]:
    """Certifies thresholds for digits and fields on images that the model was not trained on.

    A field consists of consecutive images: order the images by writer or by piece, as they follow each other in the mail.

    Args:
        probabilities: (N, 10) float32, a model's calibrated answers.
        labels: (N,) true digits.
        risk: probability that a guarantee fails, separately for each threshold.
        writers: (N,) number of each image's writer; None if the writers are unknown.
        whole: (N,) bool, False where the model says that the image is not one whole digit; None if it can't tell.

    Returns:
        Entries of the run record:

        - "thresholds": by target error rate, the fields of `certify.Threshold`, or None.
        - "fields": by number of digits, the "thresholds" of fields.
        - "risk".
        - "certified": number of "images", and of "writers" or None.
    """
    confidence, correct = score(probabilities, labels)
    confidence = refuse(confidence, whole)
    fields = {
        str(length): {
            "thresholds": certify_answers(
                *score_fields(confidence, correct, length), FIELD_ERRORS, risk, length, _first_writers(writers, length)
            )
        }
        for length in FIELD_LENGTHS
    }
    return {
        "thresholds": certify_answers(confidence, correct, ERRORS, risk, writers=writers),
        "fields": fields,
        "risk": risk,
        "certified": {"images": len(labels), "writers": None if writers is None else len(np.unique(writers))},
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
        record: a run record, or what `certify_images` returns.
    """
    certified = [target for target, found in record.get("thresholds", {}).items() if found]
    return max((target for target in certified if float(target) <= DEFAULT_ERROR), key=float, default=None)


def accepts_by_default(record: dict[str, Any]) -> bool:
    """Tests if a version accepts any digit for callers that name no target error rate; see `default_target`."""
    return default_target(record) is not None


def refuse(confidence: np.ndarray, whole: np.ndarray | None) -> np.ndarray:
    """Returns the confidences, (N,), with 0 where `whole`, (N,) bool, is False: no threshold accepts these answers."""
    return confidence if whole is None else np.where(whole, confidence, np.zeros_like(confidence))


def _first_writers(writers: np.ndarray | None, length: int) -> np.ndarray | None:
    """Returns the writer of the first image of each field of `length` images."""
    return None if writers is None else writers[: len(writers) // length * length : length]
