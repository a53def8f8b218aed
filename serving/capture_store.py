"""The database of captured images and truths about them: SQLite, or PostgreSQL for several replicas.

This is all that imports SQLAlchemy, and it is imported when capture is on. Rows are added, never changed, and deleted when
they are too old or too many. `digits-train` reads them; README.md, "The learning loop", states the tables for both.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from serving.captured import CapturedImage, CapturedTruth, CaptureError, NotStored

_DAY_SECONDS = 86_400
_CONNECT_SECONDS = 3  # how long a database over the network may take to answer
_BUSY_SECONDS = 5  # how long SQLite waits for the other workers of this machine

_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in this type only
_TABLES = MetaData()
_IMAGES = Table(
    "captured_images",
    _TABLES,
    Column("number", _NUMBER, primary_key=True),
    Column("captured_at", Double, nullable=False),
    Column("answer", String(16), nullable=False),
    Column("place", Integer, nullable=False),
    Column("field_length", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("digit", Integer, nullable=False),
    Column("confidence", Double, nullable=False),
    Column("decision", String, nullable=False),
    Column("audited", Boolean, nullable=False),
    Column("image", LargeBinary, nullable=False),
    Index("captured_images_answer", "answer"),
    Index("captured_images_captured_at", "captured_at"),
    sqlite_autoincrement=True,  # the numbers of what was deleted are not given again
)
_TRUTHS = Table(
    "captured_truths",
    _TABLES,
    Column("number", _NUMBER, primary_key=True),
    Column("reported_at", Double, nullable=False),
    Column("answer", String(16), nullable=False),
    Column("place", Integer, nullable=False),
    Column("source", String, nullable=False),
    Column("value", String, nullable=False),
    Index("captured_truths_answer", "answer"),
    sqlite_autoincrement=True,
)


class Store:
    """One connection to the database, for one thread; it comes back by itself after the database was away."""

    def __init__(self, url: str, days: float, max_images: int):
        """Takes the URL for what it is; a database over the network need not be there yet.

        Args:
            url: such as sqlite:////var/lib/digits/captured.db or postgresql://digits:password@db/digits. SQLite's file is
                made when it is not there, for its owner only.
            days: how long rows are kept.
            max_images: how many images are kept, the newest.

        Raises:
            CaptureError: it is no URL, its driver is not installed, or SQLite's file can't be had.
        """
        self._days = days
        self._max_images = max_images
        self._prepared = False
        try:
            parsed = make_url(url)
            self._name = parsed.set(query={}).render_as_string(hide_password=True)  # options may be passwords, too
            kind = parsed.get_backend_name()
            if kind not in ("sqlite", "postgresql"):
                raise CaptureError(f"--capture is {self._name}, expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")
            if kind == "sqlite":
                self._make_file(parsed.database)
            options: dict[str, Any] = {"timeout": _BUSY_SECONDS} if kind == "sqlite" else _OVER_NETWORK
            self._engine = create_engine(parsed, connect_args=options, pool_pre_ping=True, pool_size=1)
        except (NoSuchModuleError, ImportError) as error:
            raise CaptureError(f"--capture is {self._name}, whose driver is not there: {error}") from error
        except (ArgumentError, ValueError):  # their messages may hold the password
            raise CaptureError("--capture is no URL, expected such as sqlite:///captured.db") from None
        if kind == "sqlite":
            event.listen(self._engine, "connect", _make_safe)

    def __str__(self) -> str:
        return self._name

    def prepare(self) -> None:
        """Makes the tables where there are none. Raises NotStored."""
        if self._prepared:
            return
        for attempt in (1, 2):  # PostgreSQL lets two replicas that make a table at once collide, IF NOT EXISTS or not
            try:
                with self._engine.begin() as connection:
                    for table in _TABLES.sorted_tables:
                        connection.execute(CreateTable(table, if_not_exists=True))
                        for index in table.indexes:
                            connection.execute(CreateIndex(index, if_not_exists=True))
                self._prepared = True
                return
            except SQLAlchemyError as error:
                if attempt == 2:
                    raise _not_stored(error) from error

    def add(self, images: Sequence[CapturedImage], truths: Sequence[CapturedTruth]) -> None:
        """Adds all of them or nothing; once it returns, they are on the disk. Raises NotStored."""
        self.prepare()
        now = time.time()
        try:
            with self._engine.begin() as connection:
                if images:
                    connection.execute(_IMAGES.insert(), [{"captured_at": now, **asdict(image)} for image in images])
                if truths:
                    connection.execute(_TRUTHS.insert(), [{"reported_at": now, **asdict(truth)} for truth in truths])
        except SQLAlchemyError as error:
            raise _not_stored(error) from error

    def delete_old(self) -> None:
        """Deletes what is too old, the oldest of what is too much, and truths without images. Raises NotStored."""
        self.prepare()
        oldest = time.time() - self._days * _DAY_SECONDS
        newest = select(func.max(_IMAGES.c.number)).scalar_subquery()
        try:
            with self._engine.begin() as connection:
                aged = connection.execute(delete(_IMAGES).where(_IMAGES.c.captured_at < oldest)).rowcount
                excess = connection.execute(delete(_IMAGES).where(_IMAGES.c.number <= newest - self._max_images)).rowcount
                unheld = ~select(_IMAGES.c.number).where(_IMAGES.c.answer == _TRUTHS.c.answer).exists()
                orphaned = connection.execute(delete(_TRUTHS).where(unheld)).rowcount
            if self._engine.dialect.name == "sqlite" and aged + excess + orphaned:
                with self._engine.connect() as connection:  # or the log beside the file would still have them
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        except SQLAlchemyError as error:
            raise _not_stored(error) from error

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    def _make_file(self, database: str | None) -> None:
        """Makes SQLite's file, for nobody else to read; SQLite itself would let everybody."""
        if not database or database.startswith((":memory:", "file:")):
            raise CaptureError(f"--capture is {self._name}, which names no file, expected such as sqlite:///captured.db")
        with contextlib.suppress(FileExistsError):
            try:
                os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                raise
            except OSError as error:
                raise CaptureError(f"--capture is {self._name}: cannot make {database}: {error.strerror}") from error
        if not os.access(database, os.R_OK | os.W_OK) or not Path(database).is_file():
            raise CaptureError(f"--capture is {self._name}: {database} is no file that can be written")


_OVER_NETWORK = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _CONNECT_SECONDS * 1000}


def _make_safe(connection: Any, _: object) -> None:
    """Has SQLite lose nothing that was committed, let others read meanwhile, and leave no traces of what was deleted."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _not_stored(error: SQLAlchemyError) -> NotStored:
    """The driver's own words: SQLAlchemy adds the statement, and with it images."""
    return NotStored(str(getattr(error, "orig", None) or type(error).__name__).strip())
