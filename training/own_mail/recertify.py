"""Certifies an existing version on other mail, and publishes the same network with the new thresholds."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from training.certificates import (
    ACCEPTS_NOTHING,
    POSTCODE,
    accepts_by_default,
    certify_answers,
    certify_mail,
    print_thresholds,
    refuse,
)
from training.certify import RISK, first_count
from training.dataset import DatasetError
from training.drift_reference import drift_reference
from training.evaluate import FIELD_ERRORS, accept, score
from training.export import metadata
from training.exported import Exported
from training.mail import Answers
from training.make_version import stamp
from training.own_mail.lexicon import LexiconFile, count_unlisted, fields_of_codes, lookup
from training.own_mail.mail import OwnMail
from training.own_mail.shortfall import explain
from training.version_directory import OF_THRESHOLDS, publish, read_record


class _Certified(NamedTuple):
    """Answers of one kind, and the thresholds that were certified on them.

    Attributes:
        unit: the kind: "digits" or "fields of 5".
        confidence: (K,) confidence of each answer.
        correct: (K,) bool.
        thresholds: as `certify_answers` returns them.
    """

    unit: str
    confidence: np.ndarray
    correct: np.ndarray
    thresholds: dict[str, dict[str, Any] | None]

    def reasons(self, risk: float) -> dict[str, str]:
        """Explains by target error rate why a threshold is missing."""
        missing = [target for target, found in self.thresholds.items() if not found]
        return {target: explain(self.unit, self.confidence, self.correct, float(target), risk) for target in missing}


def recertify(
    version: Path, own: OwnMail, risk: float = RISK, lexicon: LexiconFile | None = None, replace: bool = False
) -> Path:
    """Certifies a version on `own` mail and publishes it beside the old version, under a new number.

    The network, its temperature and the threshold of its second head, "one whole digit", stay as they are. New are the
    thresholds, the drift reference, and the statement what they were made from. Single digits and fields of each length that
    the mail has are certified separately. With a lexicon, a field threshold holds for reading with the lexicon and without,
    because the service has one for both. An error rate for which the mail is too little gets no threshold.

    Args:
        version: a version of any precision and contract; only its model.onnx and run.json are needed.
        own: images that the version was not trained on.
        risk: probability that a guarantee fails, separately for each threshold.
        lexicon: codes that fields show; None certifies reading without a lexicon alone.
        replace: publishes a version that accepts no digit by default even beside a newest version that accepts some.

    Returns:
        The new version's directory.

    Raises:
        DatasetError: no threshold can be certified; the message estimates how much more mail is needed.
        OSError: the version can't be written.
        VersionError: `version` is not a version that `digits-train` made, or see `replace`.
        VerificationError: its model.onnx can't be loaded.
    """
    version = version.resolve()
    record, exported = read_record(version), Exported(version / "model.onnx")
    answers = _answer(exported, own)
    certificates = _certificates(own, answers, risk, lexicon)
    statement = f"{own.description}; {answers.correct[own.mail.digits].mean():.2%} of the digits read correctly"
    print(f"mail       {statement}")
    if not accepts_by_default(certificates):
        print(f"warning    {ACCEPTS_NOTHING}")
    record = {
        **{name: value for name, value in record.items() if name not in OF_THRESHOLDS},
        **certificates,
        "certified_on": statement,
        "mail": own.origin,
        "drift_reference": drift_reference(own.mail.images, answers.probabilities),
        "made_from": version.name,
        "training_commit": record.get("training_commit", record["commit"]),
        **stamp(),
    }
    properties = metadata({**record, "validation_images": len(own.mail.labels)})

    def make(draft: Path) -> dict[str, Any]:
        model = onnx.load(version / "model.onnx")
        old = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**old, **properties})
        onnx.save(model, draft / "model.onnx")
        if (version / "model.keras").is_file():
            shutil.copyfile(version / "model.keras", draft / "model.keras")
        return record

    return publish(version.parent, make, replace)


def _answer(exported: Exported, own: OwnMail) -> Answers:
    """Runs the version on all images. An image that it or the framer calls no whole digit has confidence 0."""
    probabilities, confidence, _ = exported.decisions(own.mail.images)
    _, correct = score(probabilities, own.mail.labels)
    return Answers(probabilities, refuse(confidence, ~own.refused), correct)


def _certificates(own: OwnMail, answers: Answers, risk: float, lexicon: LexiconFile | None) -> dict[str, Any]:
    """Certifies digits and fields, prints the results, and returns the entries of the run record.

    Raises:
        DatasetError: nothing can be certified.
    """
    mail = own.mail
    certificates = certify_mail(mail, answers, risk)
    digits = _Certified("digits", answers.confidence[mail.digits], answers.correct[mail.digits], certificates["thresholds"])
    fields = {
        length: _Certified(f"fields of {length}", *answers.fields(images), certificates["fields"][str(length)]["thresholds"])
        for length, images in mail.fields.items()
    }
    looked_up = {}
    if lexicon:
        looked_up = {length: _look_up(own, answers, risk, lexicon, length) for length in fields if length in lexicon.codes}
        about = {"name": lexicon.name, "sha256": lexicon.sha256}
        for length, found in looked_up.items():
            numbers = {"codes": len(lexicon.codes[length]), "fields": len(found.correct)}
            certificates["fields"][str(length)] |= {
                "thresholds": _for_both(fields[length], found, risk, length),
                "lexicon": {**about, **numbers, "thresholds": found.thresholds},
            }
    shown = [each for length, each in fields.items() if not own.made_up or length == POSTCODE]
    for each in (digits, *shown, *looked_up.values()):
        print_thresholds(each.unit, each.thresholds, each.reasons(risk))
    every = (certificates["thresholds"], *(field["thresholds"] for field in certificates["fields"].values()))
    if not any(found for thresholds in every for found in thresholds.values()):
        reasons = [f"digits, error at most {float(rate):.1%}: {reason}" for rate, reason in digits.reasons(risk).items()]
        raise DatasetError(f"no threshold can be certified on this mail; {'; '.join(reasons[:2])}")
    return certificates


def _look_up(own: OwnMail, answers: Answers, risk: float, lexicon: LexiconFile, length: int) -> _Certified:
    """Certifies fields of `length` digits that are read with a lexicon. Made-up fields show its codes."""
    mail = own.mail
    fields = fields_of_codes(mail, lexicon.codes[length]) if own.made_up else mail.fields[length]
    confidence, correct = lookup(lexicon.lexicon, answers.probabilities[fields], mail.labels[fields])
    confidence = refuse(confidence, (answers.confidence[fields] > 0).all(axis=1))
    thresholds = certify_answers(confidence, correct, FIELD_ERRORS, risk, length)
    unit = f"fields of {length}, lexicon {lexicon.name}"
    if unlisted := count_unlisted(lexicon.codes[length], mail.labels[fields]):
        shown = f"{unlisted:,} of {len(fields):,} show no code of the lexicon, and each of them that is accepted is misread"
        print(f"lexicon    {unit}: {shown}")
    return _Certified(unit, confidence, correct, thresholds)


def _for_both(first: _Certified, second: _Certified, risk: float, length: int) -> dict[str, dict[str, Any] | None]:
    """Combines the thresholds of two ways of reading fields into those that are certified for both: the stricter ones.

    Each way was tested at every threshold from the one that accepts `first_count` answers down to its own. The stricter
    threshold is among these tests if both ways accept that many answers at it.

    Args:
        first: the fields, read in the first way.
        second: the fields, read in the second way.
        risk: probability that a guarantee fails, for each way.
        length: digits per field.

    Returns:
        By target error rate, the threshold with its effect on the first way of reading. None if a way has no threshold, or
        accepts too few fields at the stricter one.
    """
    combined: dict[str, dict[str, Any] | None] = dict.fromkeys(first.thresholds)
    for target, found in first.thresholds.items():
        other = second.thresholds[target]
        if found is None or other is None:
            continue
        threshold = max(found["threshold"], other["threshold"])
        if all(_is_tested(way.confidence, threshold, float(target), risk, length) for way in (first, second)):
            effect = accept(first.confidence, first.correct, threshold)
            by_writer = found["by_writer"] if threshold == found["threshold"] else None
            combined[target] = {
                "threshold": threshold,
                "coverage": effect.coverage,
                "errors": effect.errors,
                "by_writer": by_writer,
            }
    return combined


def _is_tested(confidence: np.ndarray, threshold: float, target: float, risk: float, length: int) -> bool:
    """Tests if so many answers, (K,), reach a threshold that `certify` tests it."""
    least = first_count(len(confidence), target, risk, length)
    return least is not None and bool((confidence >= np.float64(threshold)).sum() >= least)
