"""Mail of an operator's own, to certify a version on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.dataset import NO_DIGIT, Dataset, Examples
from training.mail import Mail


@dataclass(frozen=True)
class OwnMail:
    """A sample of mail, and where it comes from.

    Attributes:
        mail: the images.
        refused: (N,) bool, True where the framer of crops found no whole digit: the service rejects these images whatever a
            model says.
        made_up: True if fields were put together from single digits.
        description: what the sample is, in words, for people.
        origin: what the sample was made from, for the run record.
    """

    mail: Mail
    refused: np.ndarray
    made_up: bool
    description: str
    origin: dict[str, Any]


def mail_of(dataset: Dataset) -> OwnMail:
    """Takes all images of a dataset as mail, the training and the test part alike.

    Fields consist of consecutive images, as in a certificate that training makes. Images are ordered by writer where the
    writers are known: one writer writes a field. Images that show no digit count among the digits and are in no field.
    """
    images = np.concatenate([dataset.train.images, dataset.test.images, dataset.no_digits])
    no_digits = np.full(len(dataset.no_digits), NO_DIGIT, np.uint8)
    labels = np.concatenate([dataset.train.labels, dataset.test.labels, no_digits])
    shown = len(labels) - len(no_digits)
    writers = None
    if dataset.train.writers is not None and dataset.test.writers is not None:
        known = np.concatenate([dataset.train.writers, dataset.test.writers]).astype(np.int64)
        writers = np.concatenate([known, known.max() + 1 + np.arange(len(no_digits))])  # nobody knows who wrote no digit
        order = np.concatenate([np.argsort(known, kind="stable"), np.arange(shown, len(labels))])
        images, labels, writers = images[order], labels[order], writers[order]
    by = "writers unknown" if writers is None else f"{len(np.unique(known)):,} writers"
    rest = f", {len(no_digits):,} of them no digit" if len(no_digits) else ""
    description = (
        f"{len(labels):,} images of {Path(dataset.name).name}{rest} ({dataset.kind}), {by}; fields put together from them"
    )
    origin = {"kind": "data", **dataset.record()}
    mail = Mail.of(Examples(images, labels, writers))
    refused = np.zeros(len(labels), bool)  # `pictures` leaves out what the framer refuses
    return OwnMail(mail, refused, True, description, origin)
