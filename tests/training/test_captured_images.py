import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.captured_store import HELD_OUT, TRAINED_ON, Store, answers, grey
from training.captured_images import Captured, load_captured
from training.dataset import Dataset, DatasetError, Examples

if TYPE_CHECKING:
    from training.fit import Fit

Images = NDArray[np.uint8]


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
