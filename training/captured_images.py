"""Images captured in service with their reported truth, split into training images and held-out images."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.capture_database import NO_DIGIT_IN_TRUTH, read_rows
from training.dataset import NO_DIGIT, Dataset, DatasetError, Examples, combined_digest

HELD_OUT = 5  # one answer in five is never trained on
SHARE = 1 / 20  # of the training images, the target for captured images
MOST_REPEATS = 10  # of one image; more would let a run memorise a few images


@dataclass(frozen=True)
class Captured:
    """Captured images whose truth was reported.

    Attributes:
        train: images that a run may train on.
        held_out: images of every fifth answer, chosen by the answer's id alone. No run ever trains on them, no matter which
            other images are captured later.
        database: URL of the database, without secrets.
        no_digits: (N, 28, 28) uint8, images whose truth is that they show no digit. They are in no other part.
    """

    train: Examples
    held_out: Examples
    database: str = ""
    no_digits: np.ndarray = field(default_factory=lambda: np.zeros((0, 28, 28), np.uint8))

    def as_dataset(self) -> Dataset:
        """Returns the images as training and test examples of their own: the held-out images are the test part.

        Raises:
            DatasetError: a part is empty.
        """
        for name, part in (("held out", self.held_out), ("left to train on", self.train)):
            if not len(part):
                raise DatasetError(
                    f"{self.database}: no image with a truth is {name} by its answer's id; capture more first"
                )
        digest = combined_digest(self.train, self.held_out)
        note = (
            "the test images are those of every fifth answer; captured mail was rejected or audited, and is harder than all"
        )
        return Dataset(
            self.train, self.held_out, digest, self.database, "captured", self.no_digits, "every fifth answer", (note,)
        )

    def mixed_into(self, examples: Examples) -> tuple[Examples, int]:
        """Appends the captured training images to `examples`, repeated until they are about a twentieth of the result.

        Returns:
            All training examples, and how often each captured image occurs in them: 1 to 10 times.

        Raises:
            DatasetError: every captured image is held out.
        """
        if not len(self.train):
            raise DatasetError(
                f"all {len(self.held_out)} captured images are held out by their answers' ids; capture more images first"
            )
        wanted = SHARE / (1 - SHARE) * len(examples)
        repeats = min(max(round(wanted / len(self.train)), 1), MOST_REPEATS)
        images = np.concatenate([examples.images, *[self.train.images] * repeats])
        return Examples(images, np.concatenate([examples.labels, *[self.train.labels] * repeats])), repeats


def load_captured(url: str) -> Captured:
    """Reads the captured images from the service's database, without modifying it.

    If an answer has several images at one index, or several truths were reported for it, the last one counts. Images are
    ordered by answer id and, within an answer, by index.

    Args:
        url: SQLAlchemy URL of the database, for example `sqlite:////absolute/path/captured.db` or
            `postgresql+psycopg://user@host/database`, with the tables `captured_images` and `captured_truths`.

    Raises:
        DatasetError: the database does not exist or can't be read, a row is not one that the service writes, or no image has
            a reported truth yet.
    """
    rows = read_rows(url)
    database, values = rows.database, rows.values()
    labelled: dict[tuple[str, int], tuple[np.ndarray, int]] = {}
    for row in rows.images:
        key = row.answer, 0 if row.field_length else row.place, row.field_length or 1
        if key in values:
            labelled[row.answer, row.place] = labelled_image(row, values[key])
    if not labelled:
        raise DatasetError(
            f"{database} has {len(rows.images):,} captured images, all without a truth; report truths for them first"
        )
    keys = sorted(labelled)
    examples = Examples(np.stack([labelled[key][0] for key in keys]), np.array([labelled[key][1] for key in keys], np.uint8))
    held, shown = np.array([is_held_out(answer) for answer, _ in keys]), examples.labels != NO_DIGIT
    return Captured(examples[~held & shown], examples[held & shown], database, examples.images[~shown])


def is_held_out(answer: str) -> bool:
    """Tests if no run ever trains on an answer's images, by its id."""
    return int(answer, 16) % HELD_OUT == 0


def labelled_image(row: Any, value: str) -> tuple[np.ndarray, int]:
    """Returns the image of a row, (28, 28) uint8, and its digit or NO_DIGIT.

    Args:
        row: a row with the attributes IMAGE_COLUMNS of `capture_database`.
        value: the truth about the image, or about its field.
    """
    character = value[row.place if row.field_length else 0]
    return np.frombuffer(row.image, np.uint8).reshape(28, 28), NO_DIGIT if character == NO_DIGIT_IN_TRUTH else int(character)
