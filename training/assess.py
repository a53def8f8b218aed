"""Calibrates, certifies and evaluates an exported network, and fills the corresponding part of the run record."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from training.calibrate import fit_temperature, softmax
from training.certify import Threshold, certify
from training.dataset import Examples
from training.drift_reference import drift_reference
from training.evaluate import ERRORS, FIELD_ERRORS, FIELD_LENGTHS, accept, evaluate, score, score_fields

DELTA = 0.001  # probability that a certified threshold exceeds its target error rate
POSTCODE = 5  # digits; length of the fields whose thresholds are printed


def assess(predict: Callable[[np.ndarray], np.ndarray], validation: Examples, test: Examples) -> dict[str, Any]:
    """Fits the temperature and the thresholds on `validation`, then evaluates on `test`, and prints the results.

    Args:
        predict: returns logits, (N, 10) float32, for images, (N, 28, 28) uint8.
        validation: held-out images. If it is empty, the temperature is 1 and there are no thresholds.
        test: images that nothing is fitted to or selected by.

    Returns:
        The entries of the run record about accuracy, calibration, thresholds and the drift reference.
    """
    temperature, validated = 1.0, None
    certified: dict[str, Threshold | None] = {}
    certified_fields: dict[int, dict[float, Threshold | None]] = {}
    reference = None
    if len(validation):
        held_out = predict(validation.images)
        temperature = fit_temperature(held_out, validation.labels)
        calibrated = softmax(held_out, temperature)
        validated = evaluate(calibrated, validation.labels)
        reference = drift_reference(validation.images, calibrated)
        print(f"calibrate  temperature {temperature:.4f}; held-out {validated}")
        certified = {str(error): certify(*score(calibrated, validation.labels), error, DELTA) for error in ERRORS}
        # Held-out images are ordered by writer, if the writers are known: like on a letter, one writer writes a field.
        certified_fields = {
            length: {
                error: certify(*score_fields(calibrated, validation.labels, length), error, DELTA) for error in FIELD_ERRORS
            }
            for length in FIELD_LENGTHS
        }

    test_logits = predict(test.images)
    probabilities = softmax(test_logits, temperature)
    tested = evaluate(probabilities, test.labels)
    uncalibrated = evaluate(softmax(test_logits, 1), test.labels)
    print(f"evaluate   test {tested}")
    record: dict[str, Any] = {
        "temperature": temperature,
        "validation": validated and asdict(validated),
        "test": asdict(tested),
        "uncalibrated": {
            "negative_log_likelihood": uncalibrated.negative_log_likelihood,
            "calibration_error": uncalibrated.calibration_error,
        },
        "thresholds": _threshold_records(certified, *score(probabilities, test.labels)),
        "fields": {
            str(length): _field_record(found, *score_fields(probabilities, test.labels, length))
            for length, found in certified_fields.items()
        },
        "delta": DELTA,
        "drift_reference": reference,
    }
    print_thresholds(record)
    return record


def print_thresholds(record: dict[str, Any]) -> None:
    """Prints the certified thresholds for digits, and for fields of the length of a postcode."""
    _print_thresholds(record["thresholds"], "digits")
    if record["fields"]:
        _print_thresholds(record["fields"][str(POSTCODE)]["thresholds"], f"fields of {POSTCODE}")


def _field_record(certified: dict[float, Threshold | None], confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Returns the record of the fields of one length: results on the test images, and the certified thresholds."""
    return {
        "test_fields": len(correct),
        "test_accuracy": float(correct.mean()),
        "test_confidence": float(confidence.mean()),
        "thresholds": _threshold_records({str(error): found for error, found in certified.items()}, confidence, correct),
    }


def _threshold_records(
    certified: dict[str, Threshold | None], confidence: np.ndarray, correct: np.ndarray
) -> dict[str, dict[str, Any] | None]:
    """Returns each threshold with its effect on the test images, by target error rate; None where none was certified."""
    records: dict[str, dict[str, Any] | None] = dict.fromkeys(certified)
    for error, found in certified.items():
        if found is not None:
            effect = asdict(accept(confidence, correct, found.threshold))
            records[error] = asdict(found) | {f"test_{name}": value for name, value in effect.items()}
    return records


def _print_thresholds(records: dict[str, Any], unit: str) -> None:
    for error, found in records.items():
        promise = f"certify    {unit}, error at most {float(error):.1%}:"
        if found is None:
            print(f"{promise} no threshold can be certified")
            continue
        print(
            f"{promise} threshold {found['threshold']:.4f}, held-out accepted {found['coverage']:.2%}, "
            f"test accepted {found['test_coverage']:.2%}, {found['test_errors']} wrong"
        )
