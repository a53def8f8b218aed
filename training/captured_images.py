"""Images captured in service with their reported truth, split into training images and held-out images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.dataset import DatasetError, Examples

HELD_OUT = 5  # one answer in five is never trained on
SHARE = 1 / 20  # of the training images, the target for captured images
MOST_REPEATS = 10  # of one image; more would let a run memorise a few images
PIXELS = 28 * 28


@dataclass(frozen=True)
class Captured:
    """Captured images whose truth was reported.

    Attributes:
        train: images that a run may train on.
        held_out: images of every fifth answer, chosen by the answer's id alone. No run ever trains on them, no matter which
            other images are captured later.
    """

    train: Examples
    held_out: Examples

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
    database, images, truths = _read(url)
    # Rows are ordered by number, so that the last truth wins. The length is part of the key because ids need not be signed:
    # a caller may report a truth of the wrong length.
    values = {(answer, index, len(str(value))): value for answer, index, value in truths}
    labelled: dict[tuple[str, int], tuple[np.ndarray, int]] = {}
    for number, answer, index, field_length, image in images:
        key = answer, 0 if field_length else index, field_length or 1
        if key in values:
            try:
                labelled[answer, index] = _labelled(answer, index, field_length, image, values[key])
            except ValueError as error:
                raise DatasetError(f"{database}: image number {number} can't be used: {error}") from error
    if not labelled:
        raise DatasetError(
            f"{database} has {len(images):,} captured images, all without a truth; report truths for them first"
        )
    keys = sorted(labelled)
    examples = Examples(np.stack([labelled[key][0] for key in keys]), np.array([labelled[key][1] for key in keys], np.uint8))
    held = np.array([int(answer, 16) % HELD_OUT == 0 for answer, _ in keys])
    return Captured(examples[~held], examples[held])


def _labelled(answer: Any, index: Any, field_length: Any, image: Any, value: Any) -> tuple[np.ndarray, int]:
    """Returns an image, (28, 28) uint8, and its digit; ValueError, with the reason, for a malformed row."""
    if not (isinstance(answer, str) and len(answer) == 16 and set(answer) <= set("0123456789abcdef")):
        raise ValueError(f"answer is {answer!r}, expected 16 hexadecimal digits")
    if not (isinstance(value, str) and value.isascii() and value.isdecimal()):
        raise ValueError(f"truth is {value!r}, expected {f'{field_length} digits' if field_length else 'a digit'}")
    if index not in range(field_length or 2**31):
        bound = f"below {field_length}, the length of the field" if field_length else "from 0"
        raise ValueError(f"place is {index!r}, expected a whole number {bound}")
    if not (isinstance(image, bytes) and len(image) == PIXELS):
        size = f"{len(image):,} bytes" if isinstance(image, bytes) else f"of type {type(image).__name__}"
        raise ValueError(f"image is {size}, expected {PIXELS} bytes (28 rows of 28)")
    return np.frombuffer(image, np.uint8).reshape(28, 28), int(value[index if field_length else 0])


def _read(url: str) -> tuple[str, list[Any], list[Any]]:
    """Returns the database's name without secrets, its image rows and its truth rows, each ordered by number."""
    from sqlalchemy import NullPool, create_engine, inspect, make_url, text  # only here: a run on MNIST needs no SQLAlchemy
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise DatasetError(  # omits the value and SQLAlchemy's message, because both may contain a password
            "--captured is not a database URL; expected for example sqlite:////absolute/path/captured.db or "
            "postgresql+psycopg://user@host/database"
        ) from None
    database = address.set(query={}).render_as_string(hide_password=True)  # the query may contain a password too
    if address.get_backend_name() == "sqlite":
        file = Path(address.database or "")
        if not file.is_file():
            raise DatasetError(f"{database}: the database file {str(file.absolute())!r} does not exist")
        address = address.set(database=file.absolute().as_uri()).update_query_dict({"mode": "ro", "uri": "true"})
    try:
        engine = create_engine(address, poolclass=NullPool, execution_options={"postgresql_readonly": True})
        with engine.connect() as connection:
            tables = inspect(connection)
            missing = [table for table in ("captured_images", "captured_truths") if not tables.has_table(table)]
            if missing:
                raise DatasetError(
                    f"{database} has no table {missing[0]}; expected the database that `digits serve --capture` writes"
                )
            truths = connection.execute(text("SELECT answer, place, value FROM captured_truths ORDER BY number"))
            images = connection.execute(
                text("SELECT number, answer, place, field_length, image FROM captured_images ORDER BY number")
            )
            return database, list(images), list(truths)
    except (NoSuchModuleError, ImportError) as error:
        raise DatasetError(f"{database}: no driver for this kind of database is installed: {error}") from error
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise DatasetError(f"{database} can't be read: {' '.join(str(reason).split())}") from error
