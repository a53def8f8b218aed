"""The images and targets of one epoch of a mixture."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.drawings import draw_many
from training.batches import MixedBatches
from training.dataset import Examples
from training.synthesis.mixture import Bank, Mixture, mix

MIXTURE = Mixture(images=200, passes=2, glyphs=0.1, other_pens=0.05, rubbish=0.2, damaged=0.4, bank=40)


class Certain:
    """A teacher that takes every digit for a 7."""

    sha256 = "7"

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        self.images = images
        return np.eye(10, dtype=np.float32)[[7] * len(images)]


@pytest.fixture(scope="module")
def digits() -> Examples:
    return Examples(*draw_many(100, seed=4))


def test_an_epoch_mixes_digits_and_rubbish_in_the_shares_asked_for(digits: Examples) -> None:
    images, targets = mix(MIXTURE, Bank(MIXTURE, digits, 0), None, None, np.random.default_rng(1))
    assert images.shape == (200, 28, 28)
    assert images.dtype == np.uint8
    assert targets.shape == (200, 11)
    assert targets[:, 10].sum() == 160
    weights = targets[:, :10].sum(axis=1)
    np.testing.assert_allclose(weights, np.where(targets[:, 10] == 1, 1, MIXTURE.doubt), atol=1e-6)
    assert np.ptp(targets[targets[:, 10] == 0, :10]) == 0, "rubbish is every digit alike"


def test_the_teacher_sees_undamaged_digits_and_has_its_share_of_the_targets(digits: Examples) -> None:
    teacher = Certain()
    mixture = replace(MIXTURE, damaged=1.0, teacher=0.25)
    _, targets = mix(mixture, Bank(mixture, digits, 0), None, teacher, np.random.default_rng(1))
    assert {image.tobytes() for image in teacher.images} <= {image.tobytes() for image in digits.images}
    others = targets[(targets[:, 10] == 1) & (targets.argmax(axis=1) != 7)]
    assert np.isclose(others[:, 7], 0.25).sum() > 100
    np.testing.assert_allclose(targets[targets[:, 10] == 1, :10].sum(axis=1), 1, atol=1e-6)


def test_the_handwriting_is_varied_anew_in_every_epoch(digits: Examples) -> None:
    from training.recipes import RECIPES

    distortions = RECIPES["folded"].augmentation
    batches = MixedBatches(MIXTURE, digits, distortions, None, 50, seed=1)
    batches.begin(0)
    first = batches.images.copy()
    batches.begin(1)
    assert (first != batches.images).any()
    again = MixedBatches(MIXTURE, digits, distortions, None, 50, seed=1)
    again.begin(1)
    np.testing.assert_array_equal(again.images, batches.images, "the epoch alone decides, so that a run can resume")


def test_an_epoch_passes_over_its_images_as_often_as_the_mixture_says(digits: Examples) -> None:
    batches = MixedBatches(MIXTURE, digits, None, None, 50, seed=1)
    batches.begin(0)
    assert len(batches) == MIXTURE.updates(50) == 8
    seen = np.concatenate([batches[step][0] for step in range(8)])
    assert len(seen) == 400
    images, counts = np.unique(seen.reshape(400, -1), axis=0, return_counts=True)
    assert len(images) <= 200
    assert (counts % 2 == 0).all()
