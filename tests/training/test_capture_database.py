import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.recognition_id import RecognitionIds
from serving.client import DigitClient
from tests.support.calls import TIMEOUT
from tests.support.captured_store import HELD_OUT, TRAINED_ON, Store, grey
from tests.support.postgres import Postgres
from tests.support.servers import StartServer
from training.__main__ import main
from training.captured_images import load_captured
from training.dataset import DatasetError
from training.own_mail import captured_mail

Images = NDArray[np.uint8]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/captured.db"
    database: Postgres = request.getfixturevalue("postgres")
    database.start()
    return database.url


async def test_a_run_loads_exactly_the_images_that_a_service_captured(
    start_server: StartServer, images: Images, database: str
) -> None:
    server = await start_server(capture=database)
    certified_by_none = 1e-6
    expected: dict[bool, list[tuple[bytes, int]]] = {True: [], False: []}  # key: the answer is held out

    def recognize_and_report(batch: Images) -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", TIMEOUT) as client:
            digits = client.recognize_batch(batch[:3], target_error_rate=certified_by_none)
            field = client.read_field(batch[3:], target_error_rate=certified_by_none)
            client.report_truth([(digits[0], "1"), (digits[2], "3"), (field, "45")], "keying")
        for answer, labels in ((digits[0], {0: 1, 2: 3}), (field, {3: 4, 4: 5})):
            held_out = int(RecognitionIds().parse(answer.recognition_id).nonce.hex(), 16) % 5 == 0
            expected[held_out] += [(batch[index].tobytes(), label) for index, label in labels.items()]

    for start in range(0, 1000, 5):
        await asyncio.to_thread(recognize_and_report, images[start : start + 5])
        if all(expected.values()):
            break
    captured = load_captured(database)
    for held_out, examples in ((True, captured.held_out), (False, captured.train)):
        found = [(image.tobytes(), label) for image, label in zip(examples.images, examples.labels.tolist(), strict=True)]
        assert sorted(found) == sorted(expected[held_out])


def test_a_database_is_not_modified_even_after_a_killed_service(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(store.file)) as service:
        service.execute("PRAGMA journal_mode = WAL")  # the service's mode; a reader with write access would clean up the log
        service.execute("SELECT * FROM captured_images").fetchall()  # opens the file
        for answer in (TRAINED_ON, HELD_OUT):
            store.capture(answer, grey(1))
            store.report(answer, "1")
        left = [Path(shutil.copy(f"{store.file}{end}", tmp_path / f"left.db{end}")) for end in ("", "-wal")]
    before = [file.read_bytes() for file in left]
    assert len(load_captured(f"sqlite:///{tmp_path}/left.db").train) == 1
    assert [file.read_bytes() for file in left] == before


def test_a_missing_database_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"the database file '.*/none\.db' does not exist"):
        load_captured(f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())


def test_a_database_file_may_have_any_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "Träume #1.db")
    for answer in (TRAINED_ON, HELD_OUT):
        store.capture(answer, grey(1))
        store.report(answer, "1")
    assert len(load_captured(store.url).train) == 1


IMAGES = "expected 784 bytes (28 rows of 28)"
TRUTHS = "expected a digit or the digits of a field, with x for what is no digit"


@pytest.mark.parametrize(
    ("row", "value", "kind", "complaint"),
    [
        (
            {"answer": TRAINED_ON, "image": bytes(783)},
            "1",
            "image",
            f"image is 783 bytes, {IMAGES}",
        ),
        ({"answer": "seven", "image": bytes(784)}, "1", "image", "answer is 'seven', expected 16 hexadecimal digits"),
        ({"answer": TRAINED_ON, "image": bytes(784)}, "y", "truth", f"value is 'y', {TRUTHS}"),
        ({"answer": TRAINED_ON, "image": bytes(784)}, "٣", "truth", f"value is '٣', {TRUTHS}"),
        (
            {"answer": TRAINED_ON, "image": bytes(784), "place": 2, "field_length": 2},
            "12",
            "image",
            "place is 2, expected a whole number below 2, the length of the field",
        ),
        (
            {"answer": TRAINED_ON, "image": bytes(784), "place": -1},
            "1",
            "image",
            "place is -1, expected a whole number from 0",
        ),
    ],
)
def test_a_row_that_no_service_wrote_is_refused_with_its_number(
    store: Store, row: dict[str, Any], value: str, kind: str, complaint: str
) -> None:
    store.capture(HELD_OUT, grey(1))
    store.report(HELD_OUT, "1")
    place, field_length = row.get("place", 0), row.get("field_length", 0)
    store.capture(row["answer"], row["image"], place=place, field_length=field_length)
    store.report(row["answer"], value, place=0 if field_length else place)
    for read in (load_captured, lambda url: captured_mail(url, 0.5)):
        with pytest.raises(DatasetError) as refusal:
            read(store.url)
        assert str(refusal.value) == f"{store.url}: {kind} number 2 can't be used: {complaint}"


def test_a_file_with_other_content_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be parsed as the header of one" * 2)
    with pytest.raises(DatasetError, match=r"text.db can't be read: file is not a database"):
        load_captured(f"sqlite:///{tmp_path}/text.db")
    store.write("DROP TABLE captured_truths")
    with pytest.raises(DatasetError, match=r"has no table captured_truths; expected .* `digits serve --capture` writes"):
        load_captured(store.url)
    store.write("CREATE TABLE captured_truths (number INTEGER, answer VARCHAR)")
    with pytest.raises(DatasetError, match=r"can't be read: no such column: place"):
        load_captured(store.url)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "not a database URL; expected for example sqlite:"),
        ("/mail/captured.db", "not a database URL"),
        ("postgresql+psycopg://mail:secret@host:secret/mail", "not a database URL"),
        ("nosuch://mail:secret@host/mail", "no driver for this kind of database is installed: Can't load plugin"),
        ("postgresql+nosuch://mail:secret@host/mail", "no driver for this kind of database is installed"),
        ("sqlite://", "sqlite:// names no file; expected for example sqlite:////absolute/path/captured.db"),
        (
            "postgresql+psycopg://mail:secret@127.0.0.1:1/mail",
            "postgresql+psycopg://mail:***@127.0.0.1:1/mail can't be read: ",
        ),
        (
            "postgresql+psycopg://127.0.0.1:1/mail?user=mail&password=secret",
            "postgresql+psycopg://127.0.0.1:1/mail can't be read",
        ),
    ],
)
def test_an_unreadable_database_ends_a_run_without_showing_passwords(
    url: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "cnn8", "--captured", url, "--models", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert complaint in output.err
    assert "secret" not in output.out + output.err

    assert not list(tmp_path.iterdir())
