import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.recognition_id import RecognitionIds
from serving.client import DigitClient
from tests.conftest import TIMEOUT, StartServer
from tests.support.captured_store import Store, answers
from tests.support.postgres import Postgres
from training import pipeline
from training.__main__ import main
from training.captured_images import Captured, load_captured
from training.dataset import Dataset, DatasetError, Examples
from training.fit import Fit, fingerprint, fit
from training.recipes import RECIPES

Images = NDArray[np.uint8]

LEARNT = "0000000000000001"  # this answer's images are learnt from
HELD_OUT = "0000000000000005"  # and this one's held out


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "captured.db")


def grey(level: int) -> Images:
    return np.full((28, 28), level, np.uint8)


def shown(examples: Examples) -> list[tuple[int, int]]:
    """The level of each grey image, and its label."""
    return list(zip(examples.images[:, 0, 0].tolist(), examples.labels.tolist(), strict=True))


def test_an_image_is_labelled_with_the_truth_that_was_reported_last(store: Store) -> None:
    store.capture(HELD_OUT, grey(1), grey(2), grey(3))
    store.report(HELD_OUT, "7", place=2, source="audit")
    store.report(HELD_OUT, "4", place=0)
    store.report("00000000000000ff", "4")  # nothing of it was captured
    store.report(HELD_OUT, "9", place=2, source="replay")
    store.capture(LEARNT, grey(4))
    store.report(LEARNT, "0")
    captured = load_captured(store.url)
    assert shown(captured.held_out) == [(1, 4), (3, 9)], "the second has no truth yet"
    assert captured.held_out.images.dtype == captured.held_out.labels.dtype == np.uint8


def test_a_truth_that_is_not_about_such_an_image_counts_for_nothing(store: Store) -> None:
    for answer in (LEARNT, HELD_OUT):
        store.capture(answer, grey(1))
        store.capture(answer, grey(2), place=1, field_length=2)
        store.report(answer, "1")
        store.report(answer, "23")
        store.report(answer, "456")
    captured = load_captured(store.url)
    assert shown(captured.train) == shown(captured.held_out) == [(1, 1), (2, 3)]


def test_the_images_of_a_field_are_labelled_with_its_digits_by_their_places(store: Store) -> None:
    store.capture(LEARNT, grey(1), grey(2), place=1, field_length=4)
    store.capture(LEARNT, grey(3), place=0, field_length=4)
    store.capture(HELD_OUT, grey(4), place=4, field_length=5)
    store.report(LEARNT, "9035")
    store.report(HELD_OUT, "12345")
    captured = load_captured(store.url)
    assert shown(captured.train) == [(3, 9), (1, 0), (2, 3)], "in the order of their places"
    assert shown(captured.held_out) == [(4, 5)]


def test_a_fifth_of_the_answers_is_held_out_whole_and_whatever_else_is_captured(store: Store) -> None:
    drawn = answers(250)
    for number, answer in enumerate(drawn[:100]):
        store.capture(answer, grey(number), grey(number))
        store.report(answer, "1", "2")
    before = load_captured(store.url)
    for number, answer in enumerate(drawn[100:], 100):
        store.capture(answer, grey(number), grey(number))
        store.report(answer, "1", "2")
    after = load_captured(store.url)
    learnt, held = ([level for level, _ in shown(part)] for part in (after.train, after.held_out))
    assert not set(learnt) & set(held)
    assert 30 <= len(set(held)) <= 70
    assert len(learnt) + len(held) == 500
    for part_before, part_after in ((before.train, learnt), (before.held_out, held)):
        assert {level for level, _ in shown(part_before)} == {level for level in part_after if level < 100}


def test_the_order_in_which_images_came_makes_no_difference(tmp_path: Path) -> None:
    stores = [Store(tmp_path / name) for name in ("first.db", "second.db")]
    for store, order in zip(stores, (1, -1), strict=True):
        for number, answer in list(enumerate(answers(30)))[::order]:
            store.capture(answer, grey(number))
            store.report(answer, str(number % 10))
    first, second = (load_captured(store.url) for store in stores)
    assert first.train.digest() == second.train.digest()
    assert first.held_out.digest() == second.held_out.digest()


@pytest.mark.parametrize(("captured", "others", "repeats"), [(412, 50_000, 6), (20, 60_000, 10), (900, 6_000, 1)])
def test_captured_images_make_up_a_twentieth_but_none_is_taken_more_than_ten_times(
    captured: int, others: int, repeats: int
) -> None:
    def some(count: int, label: int) -> Examples:
        return Examples(np.zeros((count, 28, 28), np.uint8), np.full(count, label, np.uint8))

    mixed, taken = Captured(some(captured, 7), some(1, 7)).mixed_into(some(others, 3))
    assert taken == repeats
    assert np.bincount(mixed.labels)[[3, 7]].tolist() == [others, captured * repeats]
    assert len(mixed.images) == len(mixed)


def test_a_run_learns_from_captured_images_but_from_none_that_is_held_out_and_says_so(
    drawn: Dataset, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, answer in enumerate(answers(20)):
        store.capture(answer, grey(number))
        store.report(answer, str(number % 10))
    captured = load_captured(store.url)
    learnt: list[Examples] = []

    def watched(recipe: Any, train: Examples, *arguments: Any) -> Fit:
        learnt.append(train)
        return fit(recipe, train, *arguments)

    monkeypatch.setattr(pipeline, "fit", watched)
    recipe = replace(RECIPES["cnn8"], validation_images=100)
    version = pipeline.run(recipe, drawn, 0, 1, tmp_path / "digits", captured=captured)

    train, validation = recipe.split(drawn, 0)
    [mixed] = learnt
    np.testing.assert_array_equal(mixed.images[:700], train.images)
    assert sorted(shown(mixed[700:])) == sorted(shown(captured.train) * 2), "37 images would be a twentieth of it all"
    assert not set(shown(captured.held_out)) & set(shown(mixed[700:]))
    about = {"images": len(captured.train), "held_out": len(captured.held_out), "repeats": 2}
    record = json.loads((version / "run.json").read_text())
    assert record["captured"] == about | {"sha256": captured.train.digest()}
    assert (record["training_images"], record["validation_sha256"]) == (700, validation.digest())
    assert record["fingerprint"] == fingerprint(recipe, mixed, validation, 0, 1)
    assert record["fingerprint"] != fingerprint(recipe, train, validation, 0, 1)
    share = len(captured.train) * 2 / len(mixed)
    told = f"{len(captured.train)} images with their truth, each taken 2 times, {share:.1%} of all; "
    told += f"{len(captured.held_out)} more held out"
    assert f"captured   {told} for `compare`" in capsys.readouterr().out
    card = " ".join((version / "MODEL_CARD.md").read_text().split())
    assert f"it learnt from {len(captured.train)} images captured in service" in card
    assert "700 of MNIST's" in card

    again = pipeline.remake(version, drawn, "fp32")
    assert json.loads((again / "run.json").read_text())["captured"] == record["captured"]
    assert "captured in service" in (again / "MODEL_CARD.md").read_text()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty one."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/captured.db"
    database: Postgres = request.getfixturevalue("postgres")
    database.start()
    return database.url


async def test_what_a_service_captures_is_what_a_run_learns_from(
    start_server: StartServer, images: Images, database: str
) -> None:
    server = await start_server(capture=database)
    certified_by_none = 1e-6
    expected: dict[bool, list[tuple[bytes, int]]] = {True: [], False: []}  # by whether the answer is held out

    def read_and_report(shown: Images) -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", TIMEOUT) as client:
            digits = client.recognize_batch(shown[:3], target_error_rate=certified_by_none)
            field = client.read_field(shown[3:], target_error_rate=certified_by_none)
            client.report_truth([(digits[0], "1"), (digits[2], "3"), (field, "45")], "keying")
        for answer, labels in ((digits[0], {0: 1, 2: 3}), (field, {3: 4, 4: 5})):
            held_out = int(RecognitionIds().read(answer.recognition_id).nonce.hex(), 16) % 5 == 0
            expected[held_out] += [(shown[place].tobytes(), label) for place, label in labels.items()]

    for place in range(0, 1000, 5):
        await asyncio.to_thread(read_and_report, images[place : place + 5])
        if all(expected.values()):
            break
    captured = load_captured(database)
    for held_out, examples in ((True, captured.held_out), (False, captured.train)):
        found = [(image.tobytes(), label) for image, label in zip(examples.images, examples.labels.tolist(), strict=True)]
        assert sorted(found) == sorted(expected[held_out])


def test_a_database_is_left_as_it_is_even_where_a_service_was_killed(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(store.file)) as service:
        service.execute("PRAGMA journal_mode = WAL")  # as the service has it; whoever may write tidies up what it left
        service.execute("SELECT * FROM captured_images").fetchall()  # from now on it has the file open
        for answer in (LEARNT, HELD_OUT):
            store.capture(answer, grey(1))
            store.report(answer, "1")
        left = [Path(shutil.copy(f"{store.file}{end}", tmp_path / f"left.db{end}")) for end in ("", "-wal")]
    before = [file.read_bytes() for file in left]
    assert len(load_captured(f"sqlite:///{tmp_path}/left.db").train) == 1
    assert [file.read_bytes() for file in left] == before


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no database file '.*/none\.db'"):
        load_captured(f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())


def test_a_database_may_have_any_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "Träume #1.db")
    for answer in (LEARNT, HELD_OUT):
        store.capture(answer, grey(1))
        store.report(answer, "1")
    assert len(load_captured(store.url).train) == 1


def test_images_without_their_truth_are_counted_and_those_that_are_too_few_told_of(store: Store) -> None:
    store.capture(LEARNT, grey(1), grey(2))
    store.report(HELD_OUT, "1")
    with pytest.raises(DatasetError, match="no captured image with its truth yet, and 2 without"):
        load_captured(store.url)
    store.report(LEARNT, "1")
    assert len(load_captured(store.url).held_out) == 0
    other = Store(store.file.with_name("other.db"))
    other.capture(HELD_OUT, grey(1))
    other.report(HELD_OUT, "1")
    with pytest.raises(DatasetError, match="by their answers' ids all 1 captured images are held out: capture more"):
        load_captured(other.url).mixed_into(load_captured(other.url).held_out)


@pytest.mark.parametrize(
    ("row", "value", "complaint"),
    [
        ({"answer": LEARNT, "image": bytes(783)}, "1", "its image is 783 bytes, not 784 bytes, 28 rows of 28"),
        ({"answer": "seven", "image": bytes(784)}, "1", "its answer is 'seven', not 16 hexadecimal digits"),
        ({"answer": LEARNT, "image": bytes(784)}, "x", "its truth is 'x', not a digit"),
        ({"answer": LEARNT, "image": bytes(784)}, "٣", "its truth is '٣', not a digit"),
        (
            {"answer": LEARNT, "image": bytes(784), "place": 2, "field_length": 2},
            "12",
            "its place is 2, in a field of 2 digits",
        ),
        ({"answer": LEARNT, "image": bytes(784), "place": -1}, "1", "its place is -1"),
    ],
)
def test_a_row_that_no_service_has_written_is_refused_with_its_number(
    store: Store, row: dict[str, Any], value: str, complaint: str
) -> None:
    store.capture(HELD_OUT, grey(1))
    store.report(HELD_OUT, "1")
    place, field_length = row.get("place", 0), row.get("field_length", 0)
    store.capture(row["answer"], row["image"], place=place, field_length=field_length)
    store.report(row["answer"], value, place=0 if field_length else place)
    with pytest.raises(DatasetError) as refusal:
        load_captured(store.url)
    assert str(refusal.value) == f"{store.url}: image number 2 can't be used: {complaint}"


def test_a_file_that_holds_something_else_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database, although it is long enough to be read as the header of one" * 2)
    with pytest.raises(DatasetError, match=r"text.db can't be read: file is not a database"):
        load_captured(f"sqlite:///{tmp_path}/text.db")
    store.write("DROP TABLE captured_truths")
    with pytest.raises(DatasetError, match=r"has no table captured_truths: is it what `digits serve --capture` writes to"):
        load_captured(store.url)
    store.write("CREATE TABLE captured_truths (number INTEGER, answer VARCHAR)")
    with pytest.raises(DatasetError, match=r"can't be read: no such column: place"):
        load_captured(store.url)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "what --captured names is no database: give a URL such as sqlite:"),
        ("/mail/captured.db", "what --captured names is no database"),
        ("postgresql+psycopg://mail:secret@host:secret/mail", "what --captured names is no database"),
        ("nosuch://mail:secret@host/mail", "there is no driver for such a database here: Can't load plugin"),
        ("postgresql+nosuch://mail:secret@host/mail", "there is no driver for such a database here"),
        ("sqlite://", "there is no database file"),
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
def test_a_database_that_can_not_be_had_ends_a_run_with_the_reason_and_no_password(
    url: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "cnn8", "--captured", url, "--models", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert complaint in said.err
    assert "secret" not in said.out + said.err
    assert not list(tmp_path.iterdir())
