import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

Images = NDArray[np.uint8]


def test_a_warp_distorts_training_images_about_their_centre_only(images: Images) -> None:
    from training.augmentation import RandomWarp

    pixels = images[:200, ..., None].astype(np.float32)
    layer = RandomWarp(rotation=12, shear=0.2, zoom=0.12, shift=2, bend=1.2, seed=1)
    np.testing.assert_array_equal(layer(pixels, training=False), pixels)
    moved = np.asarray(layer(pixels, training=True))
    assert moved.shape == pixels.shape
    assert (np.abs(moved - pixels).mean(axis=(1, 2, 3)) > 1).all()
    assert moved.min() >= 0
    assert moved.max() <= 255
    rows, columns = np.indices((28, 28))
    centres = [(axis * moved[..., 0]).sum((1, 2)) / moved[..., 0].sum((1, 2)) for axis in (rows, columns)]
    offsets = np.array(centres) - 13.5
    assert np.abs(offsets.mean(axis=1)).max() < 0.4, "no direction is preferred"
    assert 2 < np.abs(offsets).max() < 5
    assert np.median(moved.sum((1, 2, 3)) / pixels.sum((1, 2, 3))) == pytest.approx(1, abs=0.1), "ink is kept"


def test_a_warp_with_all_limits_zero_returns_the_image(images: Images) -> None:
    from training.augmentation import RandomWarp

    pixels = images[:10, ..., None].astype(np.float32)
    still = RandomWarp(rotation=0, shear=0, zoom=0, shift=0, bend=0, seed=1)(pixels, training=True)
    np.testing.assert_allclose(still, pixels, atol=0.01)


def test_a_shift_interpolates_between_pixels_and_lets_paper_in() -> None:
    from training.augmentation import RandomWarp

    pixels = np.full((50, 28, 28, 1), 200, np.float32)
    moved = np.asarray(RandomWarp(rotation=0, shear=0, zoom=0, shift=3, bend=0, seed=1)(pixels, training=True))[..., 0]
    assert moved[:, 4:-4, 4:-4] == pytest.approx(200), "the inside does not change"
    lost = 28 - moved[:, 14].sum(axis=1) / 200  # columns of paper that came in
    assert lost.max() == pytest.approx(3, abs=0.3)
    assert len(np.unique(lost.round(2))) > 40, "every image has its own shift"


def test_strokes_grow_or_shrink_by_at_most_one_pixel_a_side() -> None:
    from training.augmentation import RandomStrokeWidth

    stroke = np.zeros((200, 28, 28, 1), np.float32)
    stroke[:, :, 12:16] = 255  # four pixels wide
    assert np.array_equal(RandomStrokeWidth(1, 1, 1)(stroke, training=False), stroke)
    changed = np.asarray(RandomStrokeWidth(broader=1, finer=0.5, seed=1)(stroke, training=True))
    widths = changed[:, 14, :, 0].sum(axis=1) / 255
    assert widths.min() == pytest.approx(3, abs=0.1)
    assert widths.max() == pytest.approx(6, abs=0.1)


def test_noise_affects_its_share_of_the_images_and_stays_in_range() -> None:
    from training.augmentation import RandomNoise

    pixels = np.full((400, 28, 28, 1), 128, np.float32)
    assert np.array_equal(RandomNoise(0.25, 40, 1)(pixels, training=False), pixels)
    noisy = np.asarray(RandomNoise(factor=0.25, limit=40, seed=1)(pixels, training=True))
    strength = noisy.std(axis=(1, 2, 3))
    assert 60 < (strength > 0).sum() < 140
    assert 30 < strength.max() < 42
    assert (noisy.min() >= 0, noisy.max() <= 255) == (True, True)


def test_blur_equals_scipys_and_differs_between_images(images: Images) -> None:
    from training.augmentation import RandomBlur

    pixels = images[:4, ..., None].astype(np.float32)
    deviations = np.array([0.01, 0.5, 1, 2], np.float32)
    blurred = np.asarray(RandomBlur(1, 2, 1).damage(pixels, deviations.reshape(4, 1, 1, 1)))
    for image, deviation, result in zip(pixels[..., 0], deviations, blurred[..., 0], strict=True):
        expected = ndimage.gaussian_filter(image, deviation, mode="constant", truncate=12)
        np.testing.assert_allclose(result, expected, atol=0.001)
    same = np.repeat(pixels[:1], 400, axis=0)
    drawn = np.asarray(RandomBlur(factor=0.25, limit=2, seed=1)(same, training=True))
    unchanged = (drawn == same).all(axis=(1, 2, 3))
    assert 260 < unchanged.sum() < 340
    assert len(np.unique(drawn[~unchanged].max(axis=(1, 2, 3)))) > 40


def test_faded_ink_keeps_its_shape(images: Images) -> None:
    from training.augmentation import RandomFading

    pixels = np.repeat(images[:1, ..., None], 400, axis=0).astype(np.float32)
    faded = np.asarray(RandomFading(factor=0.5, limit=0.8, seed=1)(pixels, training=True))
    share = faded.sum(axis=(1, 2, 3)) / pixels.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(faded, pixels * share.reshape(-1, 1, 1, 1), atol=0.01)
    assert 160 < (share < 1).sum() < 240
    assert 0.2 < share.min() < 0.25
