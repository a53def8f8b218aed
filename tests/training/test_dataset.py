from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from training.dataset import Dataset, DatasetError, Examples, hold_out


def numbered(count: int, writers: NDArray[np.int16] | None = None) -> Dataset:
    """Training images whose pixels all hold the image's number."""
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    examples = Examples(images, np.zeros(count, np.uint8))
    return Dataset(replace(examples, writers=writers), examples, "none")


def test_holding_out_splits_without_overlap_and_repeatably() -> None:
    dataset = numbered(100)
    kept, held = hold_out(dataset, 30, seed=1)
    assert (len(kept), len(held)) == (70, 30)
    assert sorted([*kept.images[:, 0, 0], *held.images[:, 0, 0]]) == list(range(100))
    np.testing.assert_array_equal(hold_out(dataset, 30, seed=1)[1].images, held.images)
    assert (hold_out(dataset, 30, seed=2)[1].images != held.images).any()
    kept, held = hold_out(dataset, 0, seed=1)
    assert (kept.images[:, 0, 0].tolist(), len(held)) == (list(range(100)), 0)


@pytest.mark.parametrize("seed", range(5))
def test_known_writers_are_never_in_both_parts(seed: int) -> None:
    writers = np.random.default_rng(0).choice([-3, 7, 8, 1000, 2000, 2001], 200).astype(np.int16)
    kept, held = hold_out(numbered(200, writers), 70, seed)
    assert len(held) == 70
    kept_writers, held_writers = (set(writers[part.images[:, 0, 0]]) for part in (kept, held))
    assert not kept_writers & held_writers
    assert len(kept_writers | held_writers) == 6
    cut = max(np.sum(writers == writer) for writer in held_writers)
    assert 130 - cut <= len(kept) <= 130, "at most one writer's images are left out"


def test_held_out_images_keep_their_writers() -> None:
    writers = np.arange(100, dtype=np.int16) // 10
    kept, held = hold_out(numbered(100, writers), 25, seed=1)
    for part in (kept, held):
        assert part.writers is not None
        np.testing.assert_array_equal(part.writers, writers[part.images[:, 0, 0]])
    assert held[:5].writers is not None
    assert hold_out(numbered(100), 25, seed=1)[1].writers is None


def test_some_images_must_be_left_to_train_on() -> None:
    with pytest.raises(DatasetError, match="cannot hold out 100 of 100 training images"):
        hold_out(numbered(100), 100, seed=1)


def test_too_few_writers_to_hold_some_out_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"too few writers \(1\): with 30 images .* only 0 of 70 are left to train on"):
        hold_out(numbered(100, np.zeros(100, np.int16)), 30, seed=1)
