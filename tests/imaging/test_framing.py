from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.imaging.framing import frame

Images = NDArray[np.uint8]


def test_ink_is_scaled_to_twenty_pixels_and_centred_by_its_mass() -> None:
    ink = np.zeros((90, 60))
    ink[7:47, 30:40] = 1  # 40 high and 10 wide: 20 x 5 when scaled, from 7.5 to 12.5 of 20 columns
    expected = np.zeros((28, 28))
    expected[5:25, 13:17] = 255
    expected[5:25, [12, 17]] = 128
    np.testing.assert_array_equal(frame(ink), expected)


def test_resampling_leaves_the_same_artefacts_as_in_mnist() -> None:
    # Three pixels map onto two, and the middle one is split: 1/3 of a pixel falls on the first and 0.66 - 1/3 on the second,
    # which then has 0.9933 of its ink.
    framed = frame(np.ones((30, 30)))
    np.testing.assert_array_equal(framed[5:7, 5:7], [[255, 253], [253, 252]])
    np.testing.assert_array_equal(framed[5:25, 5:25], np.tile(framed[5:7, 5:7], (10, 10)))


def test_a_dot_stays_small() -> None:
    expected = np.zeros((28, 28))
    expected[10:20, 10:20] = 255  # a digit counts as at least 10 pixels in size, so 5 pixels become 10 of 20
    np.testing.assert_array_equal(frame(np.ones((5, 5))), expected)


def test_faint_ink_becomes_full_ink_and_paper_stays_paper() -> None:
    np.testing.assert_array_equal(frame(np.full((30, 30), 0.4)), frame(np.ones((30, 30), bool)))
    assert not frame(np.zeros((30, 30))).any()


def test_paper_around_the_ink_changes_nothing(images: Images) -> None:
    for image in images[:50] / 255:
        tight = image[image.any(axis=1)][:, image.any(axis=0)]
        np.testing.assert_array_equal(frame(tight), frame(np.pad(image, ((0, 31), (17, 2)))))


def test_an_mnist_image_is_hardly_changed_by_framing(mnist_path: Path) -> None:
    with np.load(mnist_path) as arrays:
        images = arrays["x_test"]
    changes = np.abs(np.stack([frame(image / 255) for image in images]) - images.astype(int)).max(axis=(1, 2))
    assert np.mean(changes == 0) > 0.89, "the others have no pixel of 255, and framing adds one"
    assert np.mean(changes <= 3) > 0.999, "the others are cut off at the edge of 28x28"
