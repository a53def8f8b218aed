"""Reads the database of captured images that `digits serve --capture` writes, without modifying it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.dataset import DatasetError

IMAGE_COLUMNS = ("number", "captured_at", "answer", "place", "field_length", "decision", "audited", "image")
NO_DIGIT_BY_FRAMER = "no_digit_by_framer"  # the `decision` about an image that the framer of crops refused
TRUTH_COLUMNS = ("number", "answer", "place", "value")
PIXELS = 28 * 28
NO_DIGIT_IN_TRUTH = "x"  # in a truth, stands for an image that shows no digit


@dataclass(frozen=True)
class CaptureRows:
    """The rows of a capture database.

    Attributes:
        database: its URL without secrets.
        images: rows with the attributes IMAGE_COLUMNS, ordered by number.
        truths: rows with the attributes TRUTH_COLUMNS, ordered by number, so that the last truth wins.
    """

    database: str
    images: list[Any]
    truths: list[Any]

    def values(self) -> dict[tuple[str, int, int], str]:
        """Returns the last reported truth by answer, place and number of digits.

        The length is part of the key because ids need not be signed: a caller may report a truth of the wrong length.
        """
        return {(row.answer, row.place, len(str(row.value))): row.value for row in self.truths}


def read_rows(url: str) -> CaptureRows:
    """Reads all rows.

    Args:
        url: SQLAlchemy URL of the database, for example `sqlite:////absolute/path/captured.db` or
            `postgresql+psycopg://user@host/database`, with the tables `captured_images` and `captured_truths`.

    Raises:
        DatasetError: the database does not exist or can't be read, or a row is not one that the service writes.
    """
    from sqlalchemy import NullPool, create_engine, inspect, make_url, text  # only here: a run on MNIST needs no SQLAlchemy
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise DatasetError(  # omits the value and SQLAlchemy's message, because both may contain a password
            "that is not a database URL; expected for example sqlite:////absolute/path/captured.db or "
            "postgresql+psycopg://user@host/database"
        ) from None
    database = address.set(query={}).render_as_string(hide_password=True)  # the query may contain a password too
    if address.get_backend_name() == "sqlite":
        if not address.database:
            raise DatasetError(f"{database} names no file; expected for example sqlite:////absolute/path/captured.db")
        file = Path(address.database)
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
            images, truths = (
                list(connection.execute(text(f"SELECT {', '.join(columns)} FROM {table} ORDER BY number")))  # noqa: S608, ours
                for table, columns in (("captured_images", IMAGE_COLUMNS), ("captured_truths", TRUTH_COLUMNS))
            )
            rows = CaptureRows(database, images, truths)
    except (NoSuchModuleError, ImportError) as error:
        raise DatasetError(f"{database}: no driver for this kind of database is installed: {error}") from error
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise DatasetError(f"{database} can't be read: {' '.join(str(reason).split())}") from error
    for kind, found, fault in (("image", rows.images, _fault_of_image), ("truth", rows.truths, _fault_of_truth)):
        for row in found:
            if complaint := fault(row):
                raise DatasetError(f"{database}: {kind} number {row.number} can't be used: {complaint}")
    return rows


def _fault_of_image(row: Any) -> str:
    """Describes the fault of a row that the service does not write; "" without a fault."""
    if not (isinstance(row.answer, str) and len(row.answer) == 16 and set(row.answer) <= set("0123456789abcdef")):
        return f"answer is {row.answer!r}, expected 16 hexadecimal digits"
    if row.place not in range(row.field_length or 2**31):
        bound = f"below {row.field_length}, the length of the field" if row.field_length else "from 0"
        return f"place is {row.place!r}, expected a whole number {bound}"
    if not (isinstance(row.image, bytes) and len(row.image) == PIXELS):
        size = f"{len(row.image):,} bytes" if isinstance(row.image, bytes) else f"of type {type(row.image).__name__}"
        return f"image is {size}, expected {PIXELS} bytes (28 rows of 28)"
    return ""


def _fault_of_truth(row: Any) -> str:
    """Describes the fault of a row that the service does not write; "" without a fault."""
    if isinstance(row.value, str) and row.value and set(row.value) <= set(f"0123456789{NO_DIGIT_IN_TRUTH}"):
        return ""
    return (
        f"value is {row.value!r}, expected a digit or the digits of a field, with {NO_DIGIT_IN_TRUTH} for what is no digit"
    )
