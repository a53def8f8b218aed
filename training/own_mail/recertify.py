"""Certifies an existing version on other mail, and publishes the same network with the new thresholds."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from training.certificates import accepts_by_default, certify_answers, refuse
from training.certify import RISK, first_count
from training.dataset import DatasetError
from training.drift_reference import drift_reference
from training.evaluate import DEFAULT_ERROR, ERRORS, FIELD_ERRORS, accept, score
from training.export import metadata
from training.exported import Exported
from training.make_version import stamp
from training.own_mail.lexicon import LexiconFile, fields_of_codes, lookup
from training.own_mail.mail import Mail
from training.own_mail.shortfall import explain
from training.version_directory import VersionError, publish, read_record

POSTCODE = 5  # digits; length of the made-up fields whose thresholds are printed
STALE = ("no_digit", "sources")  # entries of the run record that depend on the old thresholds


@dataclass(frozen=True)
class _Answers:
    """A version's answers to some mail.

    Attributes:
        probabilities: (N, 10) float32.
        confidence: (N,) float32, 0 where the model or the framer says that the image is not one whole digit.
        correct: (N,) bool, False where the image shows no digit.
        whole: (N,) bool, False where one of both says so.
    """

    probabilities: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    whole: np.ndarray

    def fields(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns confidence and correctness of fields, (F,) each, of the images with the indices (F, L)."""
        return self.confidence[images].astype(np.float64).prod(axis=1), self.correct[images].all(axis=1)


def recertify(
    version: Path, mail: Mail, risk: float = RISK, lexicon: LexiconFile | None = None, replace: bool = False
) -> Path:
    """Certifies a version on `mail` and publishes it beside the old version, under a new number.

    The network, its temperature and the threshold of its second head, "one whole digit", stay as they are. New are the
    thresholds, the drift reference, and the statement what they were made from. Single digits and fields of each length that
    the mail has are certified separately. With a lexicon, a field threshold holds for reading with the lexicon and without,
    because the service has one for both. An error rate for which the mail is too little gets no threshold.

    Args:
        version: a version of any precision and contract; only its model.onnx and run.json are needed.
        mail: images that the version was not trained on.
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
    answers = _answer(exported, mail)
    certificates = _certificates(mail, answers, risk, lexicon)
    statement = f"{mail.description}; {answers.correct[mail.digits].mean():.2%} of the digits read correctly"
    print(f"mail       {statement}")
    if not accepts_by_default(certificates):
        print(
            f"warning    a service accepts no digit of this version at its default target error rate of {DEFAULT_ERROR:.1%}"
        )
    try:
        record = {
            **{name: value for name, value in record.items() if name not in STALE},
            **certificates,
            "accepts_by_default": accepts_by_default(certificates),
            "risk": risk,
            "certified_on": statement,
            "mail": mail.origin,
            "drift_reference": drift_reference(mail.images, answers.probabilities),
            "made_from": version.name,
            "training_commit": record.get("training_commit", record["commit"]),
            **stamp(),
        }
        properties = metadata({**record, "validation_images": len(mail.labels)})
    except (KeyError, TypeError) as error:
        raise VersionError(f"{version} is not a version of this release of `digits-train run`: {error}") from error

    def make(draft: Path) -> dict[str, Any]:
        model = onnx.load(version / "model.onnx")
        old = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**old, **properties})
        onnx.save(model, draft / "model.onnx")
        if (version / "model.keras").is_file():
            shutil.copyfile(version / "model.keras", draft / "model.keras")
        return record

    return publish(version.parent, make, replace)


def _answer(exported: Exported, mail: Mail) -> _Answers:
    """Runs the version on all images. An image that it or the framer calls no whole digit has confidence 0."""
    probabilities, confidence, whole = exported.decisions(mail.images)
    _, correct = score(probabilities, mail.labels)
    return _Answers(probabilities, refuse(confidence, ~mail.refused), correct, whole & ~mail.refused)


def _certificates(mail: Mail, answers: _Answers, risk: float, lexicon: LexiconFile | None) -> dict[str, Any]:
    """Certifies digits and fields, prints the results, and returns the entries of the run record.

    Raises:
        DatasetError: nothing can be certified.
    """
    reasons: list[str] = []
    digits = answers.confidence[mail.digits], answers.correct[mail.digits]
    writers = None if mail.writers is None else mail.writers[mail.digits]
    thresholds = certify_answers(*digits, ERRORS, risk, writers=writers)
    _report("digits", thresholds, *digits, risk, reasons, printed=True)
    fields: dict[str, dict[str, Any]] = {}
    for length, images in mail.fields.items():
        writers = None if mail.writers is None else mail.writers[images[:, 0]]
        scores = answers.fields(images)
        found = certify_answers(*scores, FIELD_ERRORS, risk, length, writers)
        unit = f"fields of {length}"
        _report(unit, found, *scores, risk, reasons, printed=not mail.made_up or length == POSTCODE)
        fields[str(length)] = {"fields": len(images), "thresholds": found}
        if lexicon and length in lexicon.codes:
            shown = fields_of_codes(mail, lexicon.codes[length]) if mail.made_up else images
            looked_up = lookup(lexicon.lexicon, answers.probabilities[shown], mail.labels[shown])
            looked_up = np.where(answers.whole[shown].all(axis=1), looked_up[0], 0), looked_up[1]
            with_lexicon = certify_answers(*looked_up, FIELD_ERRORS, risk, length)
            _report(f"{unit}, lexicon {lexicon.name}", with_lexicon, *looked_up, risk, reasons, printed=True)
            about = {"name": lexicon.name, "sha256": lexicon.sha256, "codes": len(lexicon.codes[length])}
            fields[str(length)] |= {
                "thresholds": {
                    target: _for_both(float(target), found[target], scores, with_lexicon[target], looked_up, risk, length)
                    for target in found
                },
                "lexicon": {**about, "fields": len(shown), "thresholds": with_lexicon},
            }
    if not any(
        found for each in (thresholds, *(field["thresholds"] for field in fields.values())) for found in each.values()
    ):
        raise DatasetError(f"no threshold can be certified on this mail; {'; '.join(reasons[:2])}")
    return {"thresholds": thresholds, "fields": fields}


def _for_both(
    target: float,
    found: dict[str, Any] | None,
    scores: tuple[np.ndarray, np.ndarray],
    other: dict[str, Any] | None,
    others: tuple[np.ndarray, np.ndarray],
    risk: float,
    length: int,
) -> dict[str, Any] | None:
    """Combines the thresholds of two ways of reading fields into one that is certified for both: the stricter of both.

    Each way was tested at every threshold from the one that accepts `first_count` answers down to its own. The stricter
    threshold is among these tests if both ways accept that many answers at it.

    Args:
        target: largest error rate wanted among the accepted fields.
        found: the threshold of the first way; None if there is none.
        scores: confidence, (F,), and correctness, (F,) bool, of the fields that were read in the first way.
        other: the threshold of the second way.
        others: as `scores`, of the fields that were read in the second way.
        risk: probability that the guarantee fails, for each way.
        length: digits per field.

    Returns:
        The threshold with its effect on the first way of reading; None if a way has none, or accepts too few fields there.
    """
    if found is None or other is None:
        return None
    threshold = max(found["threshold"], other["threshold"])
    for confidence, _ in (scores, others):
        least = first_count(len(confidence), target, risk, length)
        if least is None or (confidence >= np.float64(threshold)).sum() < least:
            return None
    effect = accept(*scores, threshold)
    by_writer = found["by_writer"] if threshold == found["threshold"] else None
    return {"threshold": threshold, "coverage": effect.coverage, "errors": effect.errors, "by_writer": by_writer}


def _report(
    unit: str,
    thresholds: dict[str, dict[str, Any] | None],
    confidence: np.ndarray,
    correct: np.ndarray,
    risk: float,
    reasons: list[str],
    printed: bool,
) -> None:
    """Appends to `reasons` why a threshold is missing; prints all thresholds and reasons if `printed` is set."""
    for target, found in thresholds.items():
        promise = f"{unit}, error at most {float(target):.1%}"
        if found:
            wrong = f"{found['errors']:,} wrong"
            line = f"threshold {found['threshold']:.4f}, accepted {found['coverage']:.2%}, {wrong}"
        else:
            reason = explain(unit, confidence, correct, float(target), risk)
            reasons.append(f"{promise}: {reason}")
            line = f"none; {reason}"
        if printed:
            print(f"certify    {promise}: {line}")
