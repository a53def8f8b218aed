"""Images captured in service, with the truth reported about them: some to learn from, others to compare versions by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.dataset import DatasetError, Examples

HELD_OUT = 5  # one answer in so many is never learnt from
SHARE = 1 / 20  # of what is learnt from, that captured images should be
MOST_REPEATS = 10  # of an image, or a run would learn a few images by heart
PIXELS = 28 * 28


@dataclass(frozen=True)
class Captured:
    """The captured images whose truth is known.

    Attributes:
        train: what a run may learn from.
        held_out: those of every fifth answer, by its id alone, whatever else is captured: no run ever learns from them.
    """

    train: Examples
    held_out: Examples

    def mixed_into(self, examples: Examples) -> tuple[Examples, int]:
        """`examples` and, behind them, the captured images to learn from, so often that they are a twentieth of all or more.

        Returns:
            All that is to be learnt from, and how often each captured image is in it: 1 to 10 times.

        Raises:
            DatasetError: all of them are held out.
        """
        if not len(self.train):
            raise DatasetError(f"by their answers' ids all {len(self.held_out)} captured images are held out: capture more")
        wanted = SHARE / (1 - SHARE) * len(examples)
        repeats = min(max(round(wanted / len(self.train)), 1), MOST_REPEATS)
        images = np.concatenate([examples.images, *[self.train.images] * repeats])
        return Examples(images, np.concatenate([examples.labels, *[self.train.labels] * repeats])), repeats


def load_captured(url: str) -> Captured:
    """Reads what the service has captured, and leaves it as it is.

    Of several images at one place of an answer, and of several truths about it, the last one counts. Images are in the order
    of their answers' ids and, in an answer, of their places.

    Args:
        url: a database as SQLAlchemy names it, `sqlite:////absolute/path/captured.db` or
            `postgresql+psycopg://user@host/database`, with the tables `captured_images` and `captured_truths`.

    Raises:
        DatasetError: there is no such database, it can't be read, or holds what no service captures; or no image in it has
            its truth yet.
    """
    database, images, truths = _read(url)
    # In the order of their numbers: the last one stays. Without signatures, truth of another length may name an answer.
    values = {(answer, place, len(str(value))): value for answer, place, value in truths}
    labelled: dict[tuple[str, int], tuple[np.ndarray, int]] = {}
    for number, answer, place, field_length, image in images:
        about = answer, 0 if field_length else place, field_length or 1
        if about in values:
            try:
                labelled[answer, place] = _labelled(answer, place, field_length, image, values[about])
            except ValueError as error:
                raise DatasetError(f"{database}: image number {number} can't be used: {error}") from error
    if not labelled:
        raise DatasetError(
            f"{database} has no captured image with its truth yet, and {len(images):,} without: report truths about them"
        )
    places = sorted(labelled)
    examples = Examples(
        np.stack([labelled[place][0] for place in places]), np.array([labelled[place][1] for place in places], np.uint8)
    )
    held = np.array([int(answer, 16) % HELD_OUT == 0 for answer, _ in places])
    return Captured(examples[~held], examples[held])


def _labelled(answer: Any, place: Any, field_length: Any, image: Any, value: Any) -> tuple[np.ndarray, int]:
    """An image, (28, 28) uint8, and the digit that it shows; ValueError, with the reason, where no service wrote that."""
    if not (isinstance(answer, str) and len(answer) == 16 and set(answer) <= set("0123456789abcdef")):
        raise ValueError(f"its answer is {answer!r}, not 16 hexadecimal digits")
    if not (isinstance(value, str) and value.isascii() and value.isdecimal()):
        raise ValueError(f"its truth is {value!r}, not {f'{field_length} digits' if field_length else 'a digit'}")
    if place not in range(field_length or 2**31):
        raise ValueError(f"its place is {place!r}{f', in a field of {field_length} digits' if field_length else ''}")
    if not (isinstance(image, bytes) and len(image) == PIXELS):
        size = f"{len(image):,} bytes" if isinstance(image, bytes) else f"of type {type(image).__name__}"
        raise ValueError(f"its image is {size}, not {PIXELS} bytes, 28 rows of 28")
    return np.frombuffer(image, np.uint8).reshape(28, 28), int(value[place if field_length else 0])


def _read(url: str) -> tuple[str, list[Any], list[Any]]:
    """The database's name as it may be shown, and its rows of images and of truths in the order of their numbers."""
    from sqlalchemy import NullPool, create_engine, inspect, make_url, text  # only here: a run on MNIST does without
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise DatasetError(  # without what was given, or the error's own words: a password may be in either
            "what --captured names is no database: give a URL such as sqlite:////absolute/path/captured.db or "
            "postgresql+psycopg://user@host/database"
        ) from None
    database = address.set(query={}).render_as_string(hide_password=True)  # options may be passwords, too
    if address.get_backend_name() == "sqlite":
        file = Path(address.database or "")
        if not file.is_file():
            raise DatasetError(f"{database}: there is no database file {str(file.absolute())!r}")
        address = address.set(database=file.absolute().as_uri()).update_query_dict({"mode": "ro", "uri": "true"})
    try:
        engine = create_engine(address, poolclass=NullPool, execution_options={"postgresql_readonly": True})
        with engine.connect() as connection:
            tables = inspect(connection)
            missing = [table for table in ("captured_images", "captured_truths") if not tables.has_table(table)]
            if missing:
                raise DatasetError(f"{database} has no table {missing[0]}: is it what `digits serve --capture` writes to?")
            truths = connection.execute(text("SELECT answer, place, value FROM captured_truths ORDER BY number"))
            images = connection.execute(
                text("SELECT number, answer, place, field_length, image FROM captured_images ORDER BY number")
            )
            return database, list(images), list(truths)
    except (NoSuchModuleError, ImportError) as error:
        raise DatasetError(f"{database}: there is no driver for such a database here: {error}") from error
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise DatasetError(f"{database} can't be read: {' '.join(str(reason).split())}") from error
