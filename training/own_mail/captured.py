"""Draws an unbiased sample of all mail from a capture database, to certify a version on.

The service captures every rejected answer, but an accepted one only if it was marked for audit. That happens at random to a
share of them, the audit rate. Captured images are therefore no fair sample of the mail: they hold far too many rejects.

Thinning makes the sample fair. Each rejected answer is kept with a probability equal to the audit rate. Every answer is then
in the sample with the same probability, whatever was decided about it and by which version. The number of errors above a
threshold is binomial, for any threshold of any version: stricter or looser than those in force. Weights would mend the mean
as well, but the exact binomial bound knows no weights.

The conditions:

- The audit rate was the same for the whole period.
- Truth was reported about nearly every rejected and every audited answer.
- The version to certify was not trained on these images.
- The mail came by `digits.v1`. Answers of the Open Inference Protocol are never audited, but captured if they are rejected.
"""

import hashlib
from collections import Counter
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from training.capture_database import NO_DIGIT_BY_FRAMER, read_rows
from training.captured_images import is_held_out, labelled_image
from training.dataset import DatasetError
from training.mail import Mail
from training.own_mail.mail import OwnMail

MOST_WITHOUT_TRUTH = 0.05  # share of the sampled answers


class _Piece(NamedTuple):
    """A sampled answer about one digit, or a field.

    Attributes:
        length: number of digits of the field; 0 for a single digit.
        captured_at: Unix time.
        images: its images, (28, 28) uint8 each.
        digits: their true digits, or NO_DIGIT.
        refused: True for each image that the framer of crops refused.
    """

    length: int
    captured_at: float
    images: tuple[np.ndarray, ...]
    digits: tuple[int, ...]
    refused: list[bool]


def captured_mail(url: str, audit_rate: float, trained_at: float | None = None) -> OwnMail:
    """Draws the sample.

    An answer about one digit is kept or not by itself; a field is kept whole. The choice depends on the answer's id alone:
    a second try gives the same sample.

    Args:
        url: URL of the database, see `capture_database.read_rows`.
        audit_rate: the service's --audit-rate while the images were captured, above 0 to 1.
        trained_at: Unix time at which the training of a version began that learned from captured images; None for a version
            that did not. Of two samples that such a version was not trained on, the larger is taken: all answers captured
            since that time, or every fifth answer of the whole period, on which no run trains.

    Raises:
        DatasetError: the database can't be read, a row is not one that the service writes, the sample is empty, or truth is
            missing about more than a twentieth of it.
    """
    rows = read_rows(url)
    pieces, part = _not_trained_on(_pieces(rows.images), trained_at)
    values = rows.values()
    counts: Counter[str] = Counter()
    sampled: list[_Piece] = []
    for (answer, place), piece in sorted(pieces.items()):
        length, audited = piece[0].field_length, piece[0].audited
        value = values.get((answer, place, length or 1))
        if not audited and _share(answer, place) >= audit_rate:
            counts["thinned_out"] += 1
        elif value is None:
            counts["without_truth"] += 1
        elif len(piece) != (length or 1):
            counts["incomplete"] += 1  # a crash or the limits of retention left a part of a field
        else:
            counts["accepted" if audited else "rejected"] += 1
            images, digits = zip(*(labelled_image(row, value) for row in piece), strict=True)
            refused = [row.decision == NO_DIGIT_BY_FRAMER for row in piece]
            sampled.append(_Piece(length, piece[0].captured_at, images, digits, refused))
    _require_truth(rows.database, counts, len(sampled))
    return _mail(sampled, rows.database, audit_rate, part, counts)


def _pieces(images: list[Any]) -> dict[tuple[str, int], list[Any]]:
    """Groups the image rows by answer and place; a field is at place 0, with its rows in the order of the digits.

    Of several rows of one image, the last one counts.
    """
    pieces: dict[tuple[str, int], dict[int, Any]] = {}
    for row in images:
        pieces.setdefault((row.answer, 0 if row.field_length else row.place), {})[row.place] = row
    return {key: [piece[place] for place in sorted(piece)] for key, piece in pieces.items()}


def _not_trained_on(
    pieces: dict[tuple[str, int], list[Any]], trained_at: float | None
) -> tuple[dict[tuple[str, int], list[Any]], str]:
    """Returns the pieces that a version was not trained on, and a description of them."""
    if trained_at is None:
        return pieces, "all answers"
    since = {key: piece for key, piece in pieces.items() if piece[0].captured_at > trained_at}
    held_out = {key: piece for key, piece in pieces.items() if is_held_out(key[0])}
    if len(since) >= len(held_out):
        return since, "the answers since its training"
    return held_out, "every fifth answer, on which it was not trained"


def _share(answer: str, place: int) -> float:
    """Returns a number from 0 to 1 that is drawn uniformly, but is always the same for one piece."""
    digest = hashlib.sha256(f"thinning {answer} {place}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _require_truth(database: str, counts: Counter[str], found: int) -> None:
    wanted = found + counts["without_truth"]
    if not found and not counts["without_truth"]:
        raise DatasetError(
            f"{database} has no image to certify on: nothing was captured, or the audit rate thins out all of it"
        )
    if counts["without_truth"] > MOST_WITHOUT_TRUTH * wanted:
        raise DatasetError(
            f"{database}: truth is missing about {counts['without_truth']:,} of {wanted:,} sampled answers, more than "
            f"{MOST_WITHOUT_TRUTH:.0%}. Those without truth may be the hard ones: report the truth about all rejected and "
            "audited answers first"
        )


def _mail(sampled: list[_Piece], database: str, audit_rate: float, part: str, counts: Counter[str]) -> OwnMail:
    """Puts the pieces together. Digits are those of single answers; without any, those of the fields."""
    times = [piece.captured_at for piece in sampled]
    first, last = (datetime.fromtimestamp(time, UTC).date().isoformat() for time in (min(times), max(times)))
    images = np.stack([image for piece in sampled for image in piece.images])
    labels = np.array([digit for piece in sampled for digit in piece.digits], np.uint8)
    refused = np.array([each for piece in sampled for each in piece.refused])
    lengths = np.array([piece.length for piece in sampled])
    starts = np.cumsum([0, *np.maximum(lengths, 1)])[:-1]
    singles = starts[lengths <= 1]
    fields = {
        length: starts[lengths == length][:, None] + np.arange(length) for length in np.unique(lengths[lengths > 1]).tolist()
    }
    origin = {
        "kind": "captured",
        "name": database,
        "audit_rate": audit_rate,
        "part": part,
        "answers": len(sampled),
        **{name: counts[name] for name in ("accepted", "rejected", "thinned_out", "without_truth", "incomplete")},
        "from": first,
        "refused_by_framer": int(refused.sum()),
        "to": last,
        "sha256": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
    }
    description = (
        f"{len(sampled):,} answers sampled from {database}, {part}, {first} to {last}: {counts['accepted']:,} accepted and "
        f"audited, {counts['rejected']:,} rejected and kept at the audit rate of {audit_rate:g}; writers unknown"
    )
    digits = singles if len(singles) else np.arange(len(labels))
    return OwnMail(Mail(images, labels, digits, fields, None), refused, False, description, origin)
