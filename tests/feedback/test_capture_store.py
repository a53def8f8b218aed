import contextlib
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from serving.feedback import capture_store
from serving.feedback.capture_records import CapturedTruth, CaptureError, NotStored
from serving.feedback.capture_store import Store
from tests.support.captured_store import captured_image as image
from tests.support.captured_store import count_in_another_process, rows
from tests.support.postgres import Postgres


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captured.db"


def test_old_and_surplus_images_are_erased_with_their_truth(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_store, "_LATE_SECONDS", -1)
    store = Store(f"sqlite:///{file}", days=1, max_images=3)
    shown = {f"{number:016x}": bytes([64 + number]) * 784 for number in range(6)}
    store.add([image(answer, image=pixels) for answer, pixels in shown.items()], [])
    store.add([], [CapturedTruth(answer, place, "keying", "7") for answer in shown for place in (0, 1)])
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE captured_images SET captured_at = captured_at - 90000 WHERE answer = ?", (f"{5:016x}",))
    store.delete_old()
    kept = [f"{number:016x}" for number in (2, 3, 4)]
    assert rows(file, "SELECT answer FROM captured_images") == rows(file, "SELECT answer FROM captured_truths")
    assert rows(file, "SELECT answer FROM captured_images") == [(answer,) for answer in kept]
    content = b"".join(part.read_bytes() for part in file.parent.glob("captured.db*"))
    assert [answer for answer, pixels in shown.items() if pixels in content] == kept, "the others are erased"
    store.add([image()], [])
    assert rows(file, "SELECT max(number) FROM captured_images") == [(7,)], "numbers are not reused"
    store.close()


def test_superseded_truth_is_deleted_and_truth_before_its_image_is_kept(file: Path) -> None:
    store = Store(f"sqlite:///{file}", days=1, max_images=3)
    first = [
        ("0" * 16, 0, "keying", "7"),
        ("0" * 16, 0, "audit", "7"),
        ("0" * 16, 1, "keying", "7"),
        ("f" * 16, 0, "keying", "7"),
    ]
    again = [("0" * 16, 0, "keying", "1"), ("f" * 16, 0, "keying", "1")]
    store.add([], [CapturedTruth(*one) for one in (*first, *again)])
    store.delete_old()
    left = rows(file, "SELECT answer, place, source, value FROM captured_truths ORDER BY number")
    assert left == [*first[1:3], *again]
    store.close()


def test_deleted_images_leave_the_log_once_its_last_reader_is_gone(file: Path) -> None:
    store = Store(f"sqlite:///{file}", days=1e-9, max_images=3)
    store.add([image(image=b"\x55" * 784)], [])
    with contextlib.closing(sqlite3.connect(file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM captured_images").fetchall()
        store.delete_old()
    store.delete_old()
    assert not any(b"\x55" * 784 in part.read_bytes() for part in file.parent.glob("captured.db*"))
    store.close()


def test_a_file_that_was_moved_away_is_created_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(f"sqlite:///{file}", 30, 1000)
    store.add([image("1" * 16)], [])
    file.rename(file.with_name("moved.db"))
    store.add([image("2" * 16)], [])
    assert rows(file, "SELECT answer FROM captured_images") == [("2" * 16,)]
    assert "was moved or deleted, with its captured images" in caplog.text
    store.close()


def test_other_processes_may_read_between_writes(file: Path) -> None:
    store = Store(f"sqlite:///{file}", 30, 1000)
    for count in range(1, 4):
        store.add([image(f"{count:016x}")], [])
        store.delete_old()
        assert count_in_another_process(file) == count, "a reader that disconnects must not delete the log that is in use"
    store.close()
    assert count_in_another_process(file) == 3


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("captured.db", "is not a URL, expected sqlite:///FILE or postgresql://"),
        ("", "is not a URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///{directory}/captured.db?nolock=1", "has options that are not supported for SQLite: nolock"),
        ("sqlite:///{directory}", "is not a writable file"),
        ("sqlite:///{directory}/none/captured.db", "/none is not a writable directory"),
        ("mysql://digits:do-not-show-me@db/digits", "expected sqlite:///FILE or postgresql://"),
        ("postgresql+nonsense://digits:do-not-show-me@db/digits", "whose driver is not installed"),
        ("postgresql+nonsense://db/digits?user=digits&password=do-not-show-me", "whose driver is not installed"),
        ("postgresql+asyncpg://digits:do-not-show-me@db/digits", "whose driver is not installed"),
        ("postgresql://digits:do-not-show-me@db:port/digits", "is not a URL"),
    ],
)
def test_an_unusable_url_is_refused_without_showing_its_password(url: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError) as refusal:
        Store(url.format(directory=tmp_path), 30, 1000)
    assert reason in str(refusal.value)
    assert "do-not-show-me" not in str(refusal.value)


def test_postgresql_deletes_old_and_surplus_images(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_store, "_LATE_SECONDS", -1)
    postgres.start()
    store = Store(postgres.url, days=1, max_images=2)
    store.add(
        [image(f"{number:016x}") for number in range(5)],
        [CapturedTruth(f"{number:016x}", 0, "keying", "7") for number in range(5)],
    )
    store.delete_old()
    engine = create_engine(postgres.url)
    with engine.connect() as connection:
        left = connection.execute(text("SELECT answer FROM captured_images UNION ALL SELECT answer FROM captured_truths"))
        assert sorted(left.scalars()) == [f"{number:016x}" for number in (3, 3, 4, 4)]
    engine.dispose()
    store.close()


def test_an_error_has_the_message_of_the_database_and_no_statement(file: Path) -> None:
    store = Store(f"sqlite:///{file}", 30, 1000)
    store.add([], [])
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DROP TABLE captured_images")
    with pytest.raises(NotStored) as failure:
        store.add([image()], [])
    assert str(failure.value) == "no such table: captured_images"
    store.add([image()], [])  # creates the table again
    store.close()
