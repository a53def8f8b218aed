"""Drawn digits, letters and rubbish, and damage, as the bundled model reads them."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.model import open_model
from tests.support.drawings import draw_many
from tests.support.model_files import bundled
from training.dataset import Examples
from training.synthesis import damage, rubbish
from training.synthesis.glyphs import glyphs
from training.synthesis.letters import FONTS, LETTERS, handwritten, printed
from training.synthesis.other_pens import other_pens

Read = Callable[[NDArray[np.uint8]], NDArray[np.intp]]


@pytest.fixture(scope="module")
def read() -> Read:
    model = open_model(bundled().read_bytes(), "1")
    return lambda images: model.predict(images).argmax(axis=1)


@pytest.fixture(scope="module")
def digits() -> Examples:
    return Examples(*draw_many(400, seed=3))


def test_drawn_digits_are_read_as_their_labels(read: Read) -> None:
    drawn = glyphs(1000, np.random.default_rng(1))
    right = read(drawn.images) == drawn.labels
    assert right.mean() > 0.85
    assert min(right[drawn.labels == digit].mean() for digit in range(10)) > 0.5
    assert set(drawn.labels) == set(range(10))


def test_digits_of_other_pens_keep_their_labels(read: Read, digits: Examples) -> None:
    drawn = other_pens(digits, 500, np.random.default_rng(1))
    assert (read(drawn.images) == drawn.labels).mean() > 0.85
    assert drawn.images.any(axis=(1, 2)).all()


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_damaged_digit_changes_but_is_still_a_digit(kind: str, read: Read, digits: Examples) -> None:
    apply, _ = damage.KINDS[kind]
    images = digits.images
    damaged = apply(images.astype(np.float32), np.random.default_rng(1))
    assert damaged.shape == images.shape
    changed = np.clip(np.rint(damaged), 0, 255).astype(np.uint8)
    assert (changed != images).any(axis=(1, 2)).mean() > 0.4
    assert (read(changed) == digits.labels).mean() > 0.3, "this network was not trained on such damage"


def test_damage_reaches_about_the_share_of_the_images_that_is_asked_for(digits: Examples) -> None:
    damaged = damage.damage(digits.images, 0.4, np.random.default_rng(1))
    assert (damaged != digits.images).any(axis=(1, 2)).mean() == pytest.approx(0.33, abs=0.1)
    np.testing.assert_array_equal(damage.damage(digits.images, 0, np.random.default_rng(1)), digits.images)


@pytest.mark.parametrize("kind", rubbish.KINDS)
def test_each_kind_of_rubbish_varies_and_has_ink(kind: str, digits: Examples) -> None:
    draw, _ = rubbish.KINDS[kind]
    random = np.random.default_rng(1)
    images = [draw(digits, random) for _ in range(20)]
    assert all(image.shape == (28, 28) and image.dtype == np.uint8 for image in images)
    assert sum(image.any() for image in images) >= 18
    assert len({image.tobytes() for image in images}) > 15


def test_rubbish_contains_no_bar_which_would_be_a_one(digits: Examples) -> None:
    images = rubbish.rubbish(digits, 500, np.random.default_rng(1))
    for image in images:
        rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
        assert np.ptp(columns) + 1 >= 0.35 * (np.ptp(rows) + 1)


def test_equal_seeds_draw_equal_images(digits: Examples) -> None:
    first, second = (rubbish.rubbish(digits, 50, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (glyphs(50, np.random.default_rng(5)).images for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_every_font_is_installed_and_draws_letters_apart() -> None:
    random = np.random.default_rng(1)
    assert len(FONTS) == 9
    assert all(printed(letter, random).any() for letter in LETTERS)
    assert not set(LETTERS) & set("oOQDBGbgIiJjlSsZzq0123456789"), "these look like digits"
    assert len({handwritten(random).tobytes() for _ in range(10)}) == 10
