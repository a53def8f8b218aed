"""The database of captured images and truths about them: SQLite, or PostgreSQL for several replicas.

Only this module imports SQLAlchemy, and it is imported only if capture is on. Rows are added, never changed, and deleted
when they are too old or too many. `digits-train` reads the rows; its documentation on the learning loop defines the tables.
"""

import contextlib
import logging
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
    inspect,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from serving.feedback.capture_records import CapturedImage, CapturedTruth, CaptureError, NotStored
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_DAY_SECONDS = 86_400
_LATE_SECONDS = 600  # truth without an image is kept so long: the image may still be waiting to be stored
_LOCK = 0x646967697473  # key of the PostgreSQL lock for creating tables: "digits" in hexadecimal
_CONNECT_SECONDS = 2  # timeout for connecting over the network
_STATEMENT_SECONDS = 10  # timeout of a PostgreSQL statement, including its wait for a lock
_BUSY_SECONDS = 5  # longest wait of SQLite for other workers of this machine
_CHECKPOINT_SECONDS = 0.1  # longest wait of a checkpoint for readers, during which other workers wait, too
_OVER_NETWORK = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _CONNECT_SECONDS * 1000}

_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows automatically for this type only
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
    sqlite_autoincrement=True,  # numbers of deleted rows are not reused
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
    """One connection to the database, for one thread. It reconnects after an outage of the database."""

    def __init__(self, url: str, days: float, max_images: int):
        """Checks the URL without connecting: a database on the network may become available later.

        Args:
            url: such as sqlite:////var/lib/digits/captured.db or postgresql://digits:password@db/digits. SQLite's file is
                created with the first row, readable by its owner only.
            days: retention of images.
            max_images: the newest images are kept, up to this number.

        Raises:
            CaptureError: the URL is invalid, its driver is not installed, or SQLite's file can't be written.
        """
        self._days = days
        self._max_images = max_images
        self._prepared = False
        self._log_has_deleted = False  # True while SQLite's write-ahead log holds deleted rows
        self._file: Path | None = None
        self._file_opened: tuple[int, int] | None = None  # device and inode
        try:
            parsed = make_url(url)
            self._name = parsed.set(query={}).render_as_string(hide_password=True)  # options may hold passwords, too
            kind = parsed.get_backend_name()
            if kind not in ("sqlite", "postgresql"):
                raise CaptureError(f"--capture is {self._name}, expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")
            if kind == "sqlite":
                self._file = _sqlite_file(parsed)
            options: dict[str, Any] = {"timeout": _BUSY_SECONDS} if self._file else _OVER_NETWORK
            self._engine = create_engine(parsed, connect_args=options, pool_pre_ping=True, pool_size=1)
        except (NoSuchModuleError, ImportError) as error:
            raise CaptureError(f"--capture is {self._name}, whose driver is not installed: {error}") from error
        except (ArgumentError, ValueError):  # their messages may hold the password
            raise CaptureError(
                "--capture is not a URL, expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; in a "
                "password, write %40 for @ and %2F for /"
            ) from None
        event.listen(self._engine, "connect", _configure_sqlite if self._file else _configure_postgresql)

    def __str__(self) -> str:
        return self._name

    @property
    def local(self) -> bool:
        """True for a file on this machine, which must be usable from the start."""
        return self._file is not None

    def reach(self) -> None:
        """Connects, and creates nothing. Raises NotStored if the database does not answer, or has other tables."""
        if self._file is None or self._file.exists():
            with self._translating_errors(), self._engine.connect() as connection:
                _require_our_columns(connection)

    def add(self, images: Sequence[CapturedImage], truths: Sequence[CapturedTruth]) -> None:
        """Adds all rows or none. All rows are on disk once it returns. Raises NotStored."""
        now = time.time()
        with self._transaction() as connection:
            if images:
                connection.execute(_IMAGES.insert(), [{"captured_at": now, **vars(image)} for image in images])
            if truths:
                connection.execute(_TRUTHS.insert(), [{"reported_at": now, **vars(truth)} for truth in truths])

    def delete_old(self) -> None:
        """Deletes images that are too old or too many, truths without an image, and superseded truths. Raises NotStored."""
        now, later = time.time(), _TRUTHS.alias()
        newest = select(func.max(_IMAGES.c.number)).scalar_subquery()
        same_place = (_IMAGES.c.place == _TRUTHS.c.place) | (_IMAGES.c.field_length > 0)  # truth of a field is at place 0
        has_image = select(_IMAGES.c.number).where(_IMAGES.c.answer == _TRUTHS.c.answer, same_place).exists()
        same_subject = [later.c[name] == _TRUTHS.c[name] for name in ("answer", "place", "source")]
        superseded = select(later.c.number).where(later.c.number > _TRUTHS.c.number, *same_subject).exists()
        with self._transaction() as connection:
            for statement in (
                delete(_IMAGES).where(_IMAGES.c.captured_at < now - self._days * _DAY_SECONDS),
                delete(_IMAGES).where(_IMAGES.c.number <= newest - self._max_images),
                delete(_TRUTHS).where(_TRUTHS.c.reported_at < now - _LATE_SECONDS, ~has_image),
                delete(_TRUTHS).where(superseded),
            ):
                self._log_has_deleted |= connection.execute(statement).rowcount > 0
        if self._file and self._log_has_deleted:
            self._empty_log()

    def close(self) -> None:
        """Closes the connection."""
        self._engine.dispose()

    def _empty_log(self) -> None:
        """Empties SQLite's write-ahead log, where deleted rows remain readable. Postponed while a reader holds the log."""
        with self._translating_errors(), self._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={_CHECKPOINT_SECONDS * 1000:.0f}")
            try:
                busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
            finally:
                connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
            self._log_has_deleted = bool(busy)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Begins a transaction, after creating missing tables. Raises NotStored."""
        with self._translating_errors():
            self._prepare()
            with self._engine.begin() as connection:
                yield connection

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """Turns errors of SQLAlchemy into NotStored, with the driver's message.

        SQLAlchemy's own message holds the statement, and with it images.
        """
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            self._prepared = False  # the tables may be gone when the database is back
            raise NotStored(str(getattr(error, "orig", None) or error).strip()) from error

    def _prepare(self) -> None:
        """Creates SQLite's file and the tables if they are missing."""
        if self._file:
            _create_for_owner(self._file)
            status = self._file.stat()
            if (file := (status.st_dev, status.st_ino)) != self._file_opened:
                self._engine.dispose()
                if self._file_opened:
                    message = f"{self._file} was moved or deleted, with its captured images; capture starts a new file"
                    log_event(log, logging.WARNING, "capture_file_gone", message)
                self._file_opened, self._prepared = file, False
        if not self._prepared:
            with self._engine.begin() as connection:
                # Under a lock: two workers, or replicas, that create a table at once would collide.
                connection.exec_driver_sql("BEGIN IMMEDIATE" if self._file else f"SELECT pg_advisory_xact_lock({_LOCK})")
                _TABLES.create_all(connection)
                _require_our_columns(connection)
            self._prepared = True


def _sqlite_file(url: URL) -> Path:
    """Returns the file of a SQLite URL, which exists and is writable, or can be created. Raises CaptureError."""
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise CaptureError("--capture names no file for SQLite, expected a URL such as sqlite:///captured.db")
    if url.query:
        raise CaptureError(f"--capture has options that are not supported for SQLite: {', '.join(url.query)}")
    file = Path(url.database)
    if not file.exists() and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise CaptureError(f"--capture names {file}, but {file.parent} is not a writable directory")
    if file.exists() and not (file.is_file() and os.access(file, os.R_OK | os.W_OK)):
        raise CaptureError(f"--capture names {file}, which is not a writable file")
    return file


def _create_for_owner(file: Path) -> None:
    """Creates the file if it is missing, readable by its owner only. SQLite would let every user read it.

    An existing file is not opened. Closing it again would release all locks of this process on the file, including SQLite's.
    Then the next reader would delete, when it disconnects, the write-ahead log that is in use.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _require_our_columns(connection: Connection) -> None:
    """Raises NotStored if a table of the same name lacks a column of ours, so that another program must own it."""
    inspector = inspect(connection)
    for name, table in _TABLES.tables.items():
        if inspector.has_table(name):
            missing = set(table.columns.keys()) - {column["name"] for column in inspector.get_columns(name)}
            if missing:
                raise NotStored(f"table {name} belongs to another program: it has no column {min(missing)}")


def _configure_sqlite(connection: Any, _: object) -> None:
    """Makes SQLite lose no committed row, allow readers during writes, and overwrite deleted rows."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _configure_postgresql(connection: Any, _: object) -> None:
    """Makes PostgreSQL abort a slow statement, for example one that waits for a lock, so that capture can continue."""
    connection.execute(f"SET statement_timeout = {_STATEMENT_SECONDS * 1000}")
    connection.commit()
