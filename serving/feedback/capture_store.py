"""The database of captured images and truths about them: SQLite, or PostgreSQL for several replicas.

This is all that imports SQLAlchemy, and it is imported when capture is on. Rows are added, never changed, and deleted when
they are too old or too many. `digits-train` reads them; README.md, "The learning loop", states the tables for both.
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
_LATE_SECONDS = 600  # how long truth is kept whose image is not there: it may be on its way
_LOCK = 0x646967697473  # for making tables, on PostgreSQL: "digits" in hexadecimal
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
                self._file = _writable(parsed)
            options: dict[str, Any] = {"timeout": _BUSY_SECONDS} if self._file else _OVER_NETWORK
            self._engine = create_engine(parsed, connect_args=options, pool_pre_ping=True, pool_size=1)
        except (NoSuchModuleError, ImportError) as error:
            raise CaptureError(f"--capture is {self._name}, whose driver is not there: {error}") from error
        except (ArgumentError, ValueError):  # their messages may hold the password
            raise CaptureError(
                "--capture is no URL, expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE; in a password, @ "
                "is written %40, and / %2F"
            ) from None
        event.listen(self._engine, "connect", _make_safe if self._file else _make_prompt)

    def __str__(self) -> str:
        return self._name

    @property
    def local(self) -> bool:
        """Whether it lies on this machine, and is to be there."""
        return self._file is not None

    def reach(self) -> None:
        """Raises NotStored when the database does not answer, or holds something else; it makes none."""
        if self._file is None or self._file.exists():
            with self._failing_as_not_stored(), self._engine.connect() as connection:
                _require_ours(connection)

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
        about = (_IMAGES.c.answer == _TRUTHS.c.answer, (_IMAGES.c.place == _TRUTHS.c.place) | (_IMAGES.c.field_length > 0))
        imaged = select(_IMAGES.c.number).where(*about).exists()
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
            _make_for_owner(self._file)
            status = self._file.stat()
            if (file := (status.st_dev, status.st_ino)) != self._file_opened:
                self._engine.dispose()
                if self._file_opened:
                    message = f"{self._file} was moved or deleted, with what was captured in it; it begins anew"
                    log_event(log, logging.WARNING, "capture_file_gone", message)
                self._file_opened, self._prepared = file, False
        if not self._prepared:
            with self._engine.begin() as connection:
                # One at a time: two workers, or replicas, that make a table at once would collide.
                connection.exec_driver_sql("BEGIN IMMEDIATE" if self._file else f"SELECT pg_advisory_xact_lock({_LOCK})")
                _TABLES.create_all(connection)
                _require_ours(connection)
            self._prepared = True


_OVER_NETWORK = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _CONNECT_SECONDS * 1000}


def _writable(url: URL) -> Path:
    """SQLite's file, which can be written, or made. Raises CaptureError."""
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise CaptureError("--capture names no file for SQLite, expected such as sqlite:///captured.db")
    if url.query:
        raise CaptureError(f"--capture has options, {', '.join(url.query)}, that SQLite's file does not take")
    file = Path(url.database)
    if not file.exists() and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
        raise CaptureError(f"--capture names {file}, but {file.parent} is no directory that can be written to")
    if file.exists() and not (file.is_file() and os.access(file, os.R_OK | os.W_OK)):
        raise CaptureError(f"--capture names {file}, which is no file that can be written to")
    return file


def _make_for_owner(file: Path) -> None:
    """Makes a file where there is none, for nobody else to read; SQLite would let everybody.

    A file that is there is not opened: closing it again would take away this process's locks on it, those of SQLite too, and
    whoever reads it next would then, on leaving, tidy away the log that is being written.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _require_ours(connection: Connection) -> None:
    """Raises NotStored where a table is there that somebody else has made."""
    looked_at = inspect(connection)
    for name, table in _TABLES.tables.items():
        there = {column["name"] for column in looked_at.get_columns(name)} if looked_at.has_table(name) else None
        missing = set(table.columns.keys()) - there if there is not None else set()
        if missing:
            raise NotStored(f"its table {name} is another's: it has no column {min(missing)}")


def _make_safe(connection: Any, _: object) -> None:
    """Has SQLite lose nothing that was committed, let others read meanwhile, and leave no traces of what was deleted."""
    for setting in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _make_prompt(connection: Any, _: object) -> None:
    """Has PostgreSQL give up what takes too long, as on a lock, rather than have all that is captured wait."""
    connection.execute(f"SET statement_timeout = {_STATEMENT_SECONDS * 1000}")
    connection.commit()
