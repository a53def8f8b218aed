import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.recognition_id import RecognitionIds
from serving.client import DigitClient
from tests.support.calls import TIMEOUT
from tests.support.captured_store import Store, answers
from tests.support.postgres import Postgres
from tests.support.servers import StartServer
from training.__main__ import main
from training.captured_images import Captured, load_captured
from training.dataset import Dataset, DatasetError, Examples
from training.own_mail import captured_mail

if TYPE_CHECKING:
    from training.fit import Fit

Images = NDArray[np.uint8]

TRAINED_ON = "0000000000000001"  # an answer whose images are trained on
HELD_OUT = "0000000000000005"  # an answer whose images are held out


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "captured.db")


def grey(level: int) -> Images:
    return np.full((28, 28), level, np.uint8)


def levels(examples: Examples) -> list[tuple[int, int]]:
    """The level of each grey image, and its label."""
    return list(zip(examples.images[:, 0, 0].tolist(), examples.labels.tolist(), strict=True))


def test_an_image_is_labelled_with_its_last_reported_truth(store: Store) -> None:
    store.capture(HELD_OUT, grey(1), grey(2), grey(3))
    store.report(HELD_OUT, "7", place=2, source="audit")
    store.report(HELD_OUT, "4", place=0)
    store.report("00000000000000ff", "4")  # an answer without captured images
    store.report(HELD_OUT, "9", place=2, source="replay")
    store.capture(TRAINED_ON, grey(4))
    store.report(TRAINED_ON, "0")
    captured = load_captured(store.url)
    assert levels(captured.held_out) == [(1, 4), (3, 9)], "the second has no truth yet"
    assert captured.held_out.images.dtype == captured.held_out.labels.dtype == np.uint8


def test_images_without_a_digit_are_kept_apart(store: Store) -> None:
    for answer in (TRAINED_ON, HELD_OUT):
        store.capture(answer, grey(1), grey(2))
        store.report(answer, "x", "4")
    store.capture("0000000000000002", *(grey(level) for level in (3, 4, 5)), field_length=3)
    store.report("0000000000000002", "7x8")
    captured = load_captured(store.url)
    assert (levels(captured.train), levels(captured.held_out)) == ([(2, 4), (3, 7), (5, 8)], [(2, 4)])
    assert captured.no_digits[:, 0, 0].tolist() == [1, 4, 1]


def test_a_truth_of_the_wrong_length_is_ignored(store: Store) -> None:
    for answer in (TRAINED_ON, HELD_OUT):
        store.capture(answer, grey(1))
        store.capture(answer, grey(2), place=1, field_length=2)
        store.report(answer, "1")
        store.report(answer, "23")
        store.report(answer, "456")
    captured = load_captured(store.url)
    assert levels(captured.train) == levels(captured.held_out) == [(1, 1), (2, 3)]


def test_a_fields_images_are_labelled_with_its_digits_by_position(store: Store) -> None:
    store.capture(TRAINED_ON, grey(1), grey(2), place=1, field_length=4)
    store.capture(TRAINED_ON, grey(3), place=0, field_length=4)
    store.capture(HELD_OUT, grey(4), place=4, field_length=5)
    store.report(TRAINED_ON, "9035")
    store.report(HELD_OUT, "12345")
    captured = load_captured(store.url)
    assert levels(captured.train) == [(3, 9), (1, 0), (2, 3)], "ordered by position"
    assert levels(captured.held_out) == [(4, 5)]


def test_a_fifth_of_the_answers_is_held_out_for_good(store: Store) -> None:
    drawn = answers(250)
    for number, answer in enumerate(drawn[:100]):
        store.capture(answer, grey(number), grey(number))
        store.report(answer, "1", "2")
    before = load_captured(store.url)
    for number, answer in enumerate(drawn[100:], 100):
        store.capture(answer, grey(number), grey(number))
        store.report(answer, "1", "2")
    after = load_captured(store.url)
    trained, held = ([level for level, _ in levels(part)] for part in (after.train, after.held_out))
    assert not set(trained) & set(held)
    assert 30 <= len(set(held)) <= 70
    assert len(trained) + len(held) == 500
    for part_before, part_after in ((before.train, trained), (before.held_out, held)):
        assert {level for level, _ in levels(part_before)} == {level for level in part_after if level < 100}


def test_the_order_of_capture_makes_no_difference(tmp_path: Path) -> None:
    stores = [Store(tmp_path / name) for name in ("first.db", "second.db")]
    for store, order in zip(stores, (1, -1), strict=True):
        for number, answer in list(enumerate(answers(30)))[::order]:
            store.capture(answer, grey(number))
            store.report(answer, str(number % 10))
    first, second = (load_captured(store.url) for store in stores)
    assert first.train.digest() == second.train.digest()
    assert first.held_out.digest() == second.held_out.digest()


@pytest.mark.parametrize(("captured", "others", "repeats"), [(412, 50_000, 6), (20, 60_000, 10), (900, 6_000, 1)])
def test_captured_images_repeat_up_to_a_twentieth_or_ten_times(captured: int, others: int, repeats: int) -> None:
    def some(count: int, label: int) -> Examples:
        return Examples(np.zeros((count, 28, 28), np.uint8), np.full(count, label, np.uint8))

    mixed, taken = Captured(some(captured, 7), some(1, 7)).mixed_into(some(others, 3))
    assert taken == repeats
    assert np.bincount(mixed.labels)[[3, 7]].tolist() == [others, captured * repeats]
    assert len(mixed.images) == len(mixed)


def test_a_run_trains_on_captured_images_except_held_out_ones(
    drawn: Dataset, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import pipeline
    from training.fit import fingerprint, fit
    from training.recipes import RECIPES

    for number, answer in enumerate(answers(20)):
        store.capture(answer, grey(number))
        store.report(answer, str(number % 10))
    captured = load_captured(store.url)
    trained_on: list[Examples] = []

    def recorded(recipe: Any, train: Examples, *arguments: Any) -> "Fit":
        trained_on.append(train)
        return fit(recipe, train, *arguments)

    monkeypatch.setattr(pipeline, "fit", recorded)
    recipe = replace(RECIPES["cnn8"], validation_images=100)
    version = pipeline.run(recipe, drawn, 0, 1, tmp_path / "digits", captured=captured)

    train, validation = recipe.split(drawn, 0)
    [mixed] = trained_on
    np.testing.assert_array_equal(mixed.images[:700], train.images)
    assert sorted(levels(mixed[700:])) == sorted(levels(captured.train) * 2), "37 images would be a twentieth of all"
    assert not set(levels(captured.held_out)) & set(levels(mixed[700:]))
    counts = {"images": len(captured.train), "held_out": len(captured.held_out), "repeats": 2}
    record = json.loads((version / "run.json").read_text())
    assert record["captured"] == counts | {"sha256": captured.train.digest()}
    assert (record["training_images"], record["validation_sha256"]) == (700, validation.digest())
    assert record["fingerprint"] == fingerprint(recipe, mixed, validation, 0, 1)
    assert record["fingerprint"] != fingerprint(recipe, train, validation, 0, 1)
    share = len(captured.train) * 2 / len(mixed)
    summary = f"{len(captured.train)} images with a truth, each used 2 times, {share:.1%} of all images; "
    summary += f"{len(captured.held_out)} more held out"
    assert f"captured   {summary} for `compare`" in capsys.readouterr().out
    card = " ".join((version / "MODEL_CARD.md").read_text().split())
    assert f"also trained on {len(captured.train)} images captured in service" in card
    assert "700 of the 800 training images of MNIST" in card

    again = pipeline.remake(version, drawn, "fp32")
    assert json.loads((again / "run.json").read_text())["captured"] == record["captured"]
    assert "captured in service" in (again / "MODEL_CARD.md").read_text()


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


def test_too_few_images_with_a_truth_are_refused_with_their_number(store: Store) -> None:
    store.capture(TRAINED_ON, grey(1), grey(2))
    store.report(HELD_OUT, "1")
    with pytest.raises(DatasetError, match="has 2 captured images, all without a truth; report truths"):
        load_captured(store.url)
    store.report(TRAINED_ON, "1")
    assert len(load_captured(store.url).held_out) == 0
    other = Store(store.file.with_name("other.db"))
    other.capture(HELD_OUT, grey(1))
    other.report(HELD_OUT, "1")
    with pytest.raises(DatasetError, match="all 1 captured images are held out by their answers' ids; capture more"):
        load_captured(other.url).mixed_into(load_captured(other.url).held_out)


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
        ("sqlite://", f"sqlite://: the database file {str(Path.cwd())!r} does not exist"),
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
