"""What a version learned from, by its run record: a version's confidence in images that it was trained on is no measure."""

from datetime import datetime
from pathlib import Path
from typing import Any

from training.dataset import DatasetError
from training.own_mail.mail import OwnMail
from training.sketch import found_in


def trained_at(record: dict[str, Any]) -> float | None:
    """Returns a Unix time after which a version learned from no captured image; None if it never learned from any.

    Args:
        record: the version's run record.
    """
    # The bundled digits-flagship has no entry `dataset`: it learned from MNIST.
    learned = "captured" in record or record.get("dataset", {}).get("kind") == "captured"
    return datetime.fromisoformat(record["created"]).timestamp() if learned else None


def require_unseen(own: OwnMail, version: Path, record: dict[str, Any]) -> None:
    """Raises DatasetError if the mail contains images that the version was trained on.

    Args:
        own: the mail.
        version: the version's directory, for the message.
        record: its run record.
    """
    known = found_in(own.mail.images, record.get("training_sketch", []))  # the bundled versions have none
    if known or own.origin["sha256"] == record["dataset_sha256"]:
        raise DatasetError(
            f"{version} was trained on images of {own.origin['name']}, so its confidence there is no measure. "
            "Certify on other images; `export` certifies a version again on the images that its training held out"
        )
