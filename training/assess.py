"""Calibrates, certifies and evaluates an exported network, and fills the corresponding part of the run record."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from training.calibrate import fit_temperature, softmax
from training.certificates import ACCEPTS_NOTHING, POSTCODE, accepts_by_default, certify_mail, print_thresholds, refuse
from training.certify import RISK
from training.dataset import Examples
from training.drift_reference import drift_reference
from training.evaluate import accept, evaluate, score, score_fields
from training.mail import Answers, Mail
from training.whole import WHOLE_LOSS, Heads, fix_whole_threshold, is_whole


def assess(
    predict: Callable[[np.ndarray], Heads],
    validation: Examples,
    test: Examples,
    risk: float = RISK,
) -> dict[str, Any]:
    """Fits the temperature and the thresholds on `validation`, then evaluates on `test`, and prints the results.

    A network with a second head first gets its whole threshold, also where nothing is held out. The answers that this
    threshold refuses count as confidence 0 when the other thresholds are certified.

    Args:
        predict: answers images, (N, 28, 28) uint8.
        validation: held-out images. If it is empty, the temperature is 1 and there are no thresholds.
        test: images that nothing is fitted to or selected by.
        risk: probability that the error of a certified threshold exceeds its target.

    Returns:
        The entries of the run record about accuracy, calibration, thresholds and the drift reference.
    """
    temperature, validated, reference = 1.0, None, None
    certificates: dict[str, Any] = {"thresholds": {}, "fields": {}, "risk": risk, "certified": None}
    test_logits, test_whole = predict(test.images)
    whole, kept, test_kept = None, None, None
    refusal: dict[str, Any] = {}
    if len(validation):
        logits, whole = predict(validation.images)
        temperature = fit_temperature(logits, validation.labels)
        calibrated = softmax(logits, temperature)
        validated = evaluate(calibrated, validation.labels)
        reference = drift_reference(validation.images, calibrated)
        print(f"calibrate  temperature {temperature:.4f}; held-out {validated}")
    if test_whole is not None:
        refusal = {"whole": _fix_whole(whole, test_whole)}
        test_kept = is_whole(test_whole, refusal["whole"]["threshold"])
        kept = None if whole is None else is_whole(whole, refusal["whole"]["threshold"])
    if len(validation):
        confidence, correct = score(calibrated, validation.labels)
        answers = Answers(calibrated, refuse(confidence, kept), correct)
        certificates = certify_mail(Mail.of(validation), answers, risk)
    probabilities = softmax(test_logits, temperature)
    tested = evaluate(probabilities, test.labels)
    uncalibrated = evaluate(softmax(test_logits, 1), test.labels)
    print(f"evaluate   test {tested}")
    record = {
        "temperature": temperature,
        "validation": validated and asdict(validated),
        "test": asdict(tested),
        "uncalibrated": {
            "negative_log_likelihood": uncalibrated.negative_log_likelihood,
            "calibration_error": uncalibrated.calibration_error,
        },
        **refusal,
        **_with_effect(certificates, *score(probabilities, test.labels), test_kept),
        "drift_reference": reference,
    }
    print_thresholds("digits", record["thresholds"], {})
    if str(POSTCODE) in record["fields"]:
        print_thresholds(f"fields of {POSTCODE}", record["fields"][str(POSTCODE)]["thresholds"], {})
    if not accepts_by_default(record):
        print(f"warning    {_remedy(record, len(validation))}")
    return record


def _fix_whole(held_out: np.ndarray | None, test: np.ndarray) -> dict[str, Any]:
    """Fixes the threshold of the second head, and prints what it refuses.

    Args:
        held_out: (N,) float32, probability of one whole digit, for the held-out digits. None where nothing is held out: the
            threshold is then 0, which refuses nothing, because a service needs a number.
        test: (M,) float32, the same for the test images.

    Returns:
        The entry `whole` of the run record. `held_out_lost` is None where nothing is held out.
    """
    threshold = 0.0 if held_out is None else fix_whole_threshold(held_out)
    lost = None if held_out is None else float((~is_whole(held_out, threshold)).mean())
    test_lost = float((~is_whole(test, threshold)).mean())
    if lost is not None:
        print(
            f"whole      threshold {threshold:.6f} refuses {lost:.2%} of the held-out digits (aim {WHOLE_LOSS:.2%}) and "
            f"{test_lost:.2%} of the test images"
        )
    return {"threshold": threshold, "held_out_lost": lost, "test_lost": test_lost}


def _with_effect(
    certificates: dict[str, Any], confidence: np.ndarray, correct: np.ndarray, kept: np.ndarray | None
) -> dict[str, Any]:
    """Adds the results on the test images to certificates: `confidence` and `correct` of each, `kept` by the second head."""
    accepted = refuse(confidence, kept)
    fields = {}
    for length, field in certificates["fields"].items():
        products, all_correct = score_fields(confidence, correct, int(length))
        fields[length] = field | {
            "test_fields": len(all_correct),
            "test_accuracy": float(all_correct.mean()),
            "test_confidence": float(products.mean()),
            "thresholds": _effects(field["thresholds"], *score_fields(accepted, correct, int(length))),
        }
    return certificates | {"thresholds": _effects(certificates["thresholds"], accepted, correct), "fields": fields}


def _effects(
    certified: dict[str, dict[str, Any] | None], confidence: np.ndarray, correct: np.ndarray
) -> dict[str, dict[str, Any] | None]:
    """Adds to each threshold its effect on the test images."""
    effects: dict[str, dict[str, Any] | None] = dict.fromkeys(certified)
    for error, found in certified.items():
        if found is not None:
            effect = asdict(accept(confidence, correct, found["threshold"]))
            effects[error] = found | {f"test_{name}": value for name, value in effect.items()}
    return effects


def _remedy(record: dict[str, Any], held_out: int) -> str:
    """Explains why a version accepts nothing by default, and what to do."""
    if not held_out:
        return f"{ACCEPTS_NOTHING}: no images were held out to certify thresholds on; train with --hold-out 10000"
    looser = [float(error) for error, found in record["thresholds"].items() if found]
    instead = f", or ask for a target error rate of {min(looser):.1%}" if looser else ""
    return (
        f"{ACCEPTS_NOTHING}: no such threshold can be certified on {held_out:,} held-out images; hold out more with "
        f"--hold-out, train a more accurate recipe{instead}"
    )
