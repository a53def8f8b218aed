"""The database of captured images and truths about them: SQLite, or PostgreSQL for several replicas.

This is all that imports SQLAlchemy, and it is imported when capture is on. Rows are added, never changed, and deleted when
they are too old or too many. `digits-train` reads them; README.md, "The learning loop", states the tables for both.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
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
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from serving.captured import CapturedImage, CapturedTruth, CaptureError, NotStored

_DAY_SECONDS = 86_400
_LATE_SECONDS = 3600  # how long truth is kept whose images are not there: they may be on their way
_CONNECT_SECONDS = 2  # how long a database over the network may take to answer
_STATEMENT_SECONDS = 10  # and to do what it is told, or wait for a lock
_BUSY_SECONDS = 5  # how long SQLite waits for the other workers of this machine
_CHECKPOINT_SECONDS = 0.1  # and, while those wait, for others that read the file

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
        """Takes the URL for what it is; nothing is made, and a database over the network need not be there yet.

        Args:
            url: such as sqlite:////var/lib/digits/captured.db or postgresql://digits:password@db/digits. SQLite's file is
                made when the first row comes, for its owner only.
            days: how long rows are kept.
            max_images: how many images are kept, the newest.

        Raises:
            CaptureError: it is no URL, its driver is not installed, or SQLite's file can't be had.
        """
        self._days = days
        self._max_images = max_images
        self._prepared = False
        self._log_has_deleted = False  # SQLite's, beside its file
        self._file: Path | None = None
        self._file_opened: tuple[int, int] | None = None  # device and inode
        try:
            parsed = make_url(url)
            self._name = parsed.set(query={}).render_as_string(hide_password=True)  # options may be passwords, too
            kind = parsed.get_backend_name()
            if kind not in ("sqlite", "postgresql"):
                raise CaptureError(f"--capture is {self._name}, expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")
            if kind == "sqlite":
                self._file = self._writable(parsed.database)
            options: dict[str, Any] = {"timeout": _BUSY_SECONDS} if self._file else _OVER_NETWORK
            self._engine = create_engine(parsed, connect_args=options, pool_pre_ping=True, pool_size=1)
        except (NoSuchModuleError, ImportError) as error:
            raise CaptureError(f"--capture is {self._name}, whose driver is not there: {error}") from error
        except (ArgumentError, ValueError):  # their messages may hold the password
            raise CaptureError("--capture is no URL, expected such as sqlite:///captured.db") from None
        event.listen(self._engine, "connect", _make_safe if self._file else _make_prompt)

    def __str__(self) -> str:
        return self._name

    def reach(self) -> None:
        """Raises NotStored when a database over the network does not answer."""
        if not self._file:
            with self._failing_as_not_stored():
                self._engine.connect().close()

    def add(self, images: Sequence[CapturedImage], truths: Sequence[CapturedTruth]) -> None:
        """Adds all of them or nothing; once it returns, they are on the disk. Raises NotStored."""
        now = time.time()
        with self._transaction() as connection:
            if images:
                connection.execute(_IMAGES.insert(), [{"captured_at": now, **vars(image)} for image in images])
            if truths:
                connection.execute(_TRUTHS.insert(), [{"reported_at": now, **vars(truth)} for truth in truths])

    def delete_old(self) -> None:
        """Deletes images that are too old, the oldest of too many, and truths that are of no use. Raises NotStored."""
        now, later = time.time(), _TRUTHS.alias()
        newest = select(func.max(_IMAGES.c.number)).scalar_subquery()
        imaged = select(_IMAGES.c.number).where(_IMAGES.c.answer == _TRUTHS.c.answer).exists()
        said_again = [later.c[name] == _TRUTHS.c[name] for name in ("answer", "place", "source")]
        superseded = select(later.c.number).where(later.c.number > _TRUTHS.c.number, *said_again).exists()
        with self._transaction() as connection:
            for statement in (
                delete(_IMAGES).where(_IMAGES.c.captured_at < now - self._days * _DAY_SECONDS),
                delete(_IMAGES).where(_IMAGES.c.number <= newest - self._max_images),
                delete(_TRUTHS).where(_TRUTHS.c.reported_at < now - _LATE_SECONDS, ~imaged),
                delete(_TRUTHS).where(superseded),
            ):
                self._log_has_deleted |= connection.execute(statement).rowcount > 0
        if self._file and self._log_has_deleted:
            self._empty_log()

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    def _empty_log(self) -> None:
        """Has SQLite empty the log beside its file, where what was deleted can be read; if somebody reads now, later."""
        with self._failing_as_not_stored(), self._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={_CHECKPOINT_SECONDS * 1000:.0f}")
            try:
                busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
            finally:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
            self._log_has_deleted = bool(busy)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A transaction on tables that are there. Raises NotStored."""
        with self._failing_as_not_stored():
            self._prepare()
            with self._engine.begin() as connection:
                yield connection

    @contextlib.contextmanager
    def _failing_as_not_stored(self) -> Iterator[None]:
        """Turns what SQLAlchemy raises into NotStored, in the driver's words: it adds statements, and with them images."""
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            self._prepared = False  # who knows what is there, when it works again
            raise NotStored(str(getattr(error, "orig", None) or error).strip()) from error

    def _prepare(self) -> None:
        """Makes SQLite's file, and the tables, where there are none."""
        if self._file:
            file = _made_for_owner(self._file)
            if file != self._file_opened:  # the first time, or somebody has moved it away under our hands
                self._engine.dispose()
                self._file_opened, self._prepared = file, False
        for last in (False, True):
            try:
                if not self._prepared:
                    _TABLES.create_all(self._engine)
                self._prepared = True
            except SQLAlchemyError as error:
                # Two replicas, or workers, that make a table at once collide, and then it is there.
                if last or (isinstance(error, OperationalError) and not self._file):
                    raise

    def _writable(self, database: str | None) -> Path:
        """SQLite's file, which can be written, or made."""
        if not database or database.startswith((":memory:", "file:")):
            raise CaptureError(f"--capture is {self._name}, which names no file, expected such as sqlite:///captured.db")
        file = Path(database)
        if not file.exists() and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            raise CaptureError(f"--capture is {self._name}, but {file.parent} is no directory that can be written to")
        if file.exists() and not (file.is_file() and os.access(file, os.R_OK | os.W_OK)):
            raise CaptureError(f"--capture is {self._name}, but {file} is no file that can be written to")
        return file


_OVER_NETWORK = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _CONNECT_SECONDS * 1000}


def _made_for_owner(file: Path) -> tuple[int, int]:
    """Makes a file where there is none, for nobody else to read; SQLite would let everybody. Its device and inode."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return status.st_dev, status.st_ino


def _make_safe(connection: Any, _: object) -> None:
    """Has SQLite lose nothing that was committed, let others read meanwhile, and leave no traces of what was deleted."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _make_prompt(connection: Any, _: object) -> None:
    """Has PostgreSQL give up what takes too long, as on a lock, rather than have all that is captured wait."""
    connection.execute(f"SET statement_timeout = {_STATEMENT_SECONDS * 1000}")
    connection.commit()
