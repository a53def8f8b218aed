import numpy as np
import pytest
from numpy.typing import NDArray

from serving.repository.versions import ModelVersion
from training.damage import SEVERE
from training.dataset import Examples
from training.exported import Exported
from training.robustness import mean_accuracy, robustness, second_source, sources

Images = NDArray[np.uint8]


def damaged(image: NDArray[np.uint8], copies: int = 200) -> dict[str, Images]:
    """The result of each damage on `copies` of `image`."""
    seen: list[Images] = []

    def predict(images: Images) -> NDArray[np.float64]:
        seen.append(images)
        return np.eye(10)[[0] * len(images)]

    rows = robustness(predict, Examples(np.repeat(image[None], copies, axis=0), np.zeros(copies, np.uint8)), seed=1)
    assert all(images.shape == (copies, 28, 28) for images in seen)
    assert all(images.dtype == np.uint8 for images in seen)
    return {f"{row['damage']} {row['amount']}".strip(): images for row, images in zip(rows, seen, strict=True)}


def middle(images: Images) -> NDArray[np.float64]:
    """The centre of mass of each image's ink, (N, 2): right and down from the centre of the image."""
    rows, columns = np.indices((28, 28)) - 13.5
    return np.stack([(images * axis).sum((1, 2)) / images.sum((1, 2), dtype=float) for axis in (columns, rows)], axis=1)


def test_a_row_has_the_accuracy_on_the_damaged_images(images: Images) -> None:
    labels = np.arange(100, dtype=np.uint8) % 10

    def predict(given: Images) -> NDArray[np.float64]:
        same = (given == images[:100]).all(axis=(1, 2))
        return np.eye(10)[np.where(same, labels, (labels + 1) % 10)]

    rows = robustness(predict, Examples(images[:100], labels), seed=1)
    assert rows[0] == {"damage": "none", "amount": "", "accuracy": 1.0, "images": 100}
    assert {"damage": "shift", "amount": "2 px", "accuracy": 0.0, "images": 100} in rows
    assert len({(row["damage"], row["amount"]) for row in rows}) == len(rows)


def test_the_mean_counts_each_kind_of_damage_once() -> None:
    accuracies = [("none", 1.0), ("shift", 0.9), ("shift", 0.7), ("haze", 0.4)]
    rows = [{"damage": damage, "accuracy": accuracy} for damage, accuracy in accuracies]
    assert mean_accuracy(rows) == pytest.approx((0.8 + 0.4) / 2)
    assert mean_accuracy(rows, SEVERE) == pytest.approx(0.4)


def test_damage_is_equal_for_equal_seeds_only(images: Images) -> None:
    def sums(seed: int) -> list[int]:
        seen: list[int] = []

        def predict(given: Images) -> NDArray[np.float64]:
            seen.append(int((given * np.arange(784).reshape(28, 28)).sum()))
            return np.zeros((len(given), 10))

        robustness(predict, Examples(images[:20], np.zeros(20, np.uint8)), seed)
        return seen

    assert sums(1) == sums(1)
    assert sum(one != other for one, other in zip(sums(1), sums(2), strict=True)) == 4 + 5 + 3 + 4 + 24


def test_ink_is_shifted_rotated_and_scaled_by_the_rows_amount() -> None:
    dot = np.zeros((28, 28), np.uint8)
    dot[12:16, 20:24] = 255  # eight pixels to the right of the middle
    found = {name: middle(images) for name, images in damaged(dot).items() if images.any(axis=(1, 2)).all()}
    assert found["none"] == pytest.approx(np.full((200, 2), [8, 0]))
    assert {tuple(place) for place in found["shift 3 px"].round(3)} == {(11, 0), (5, 0), (8, 3), (8, -3)}
    for degrees in (5, 10, 15, 20, 30):
        angle = np.degrees(np.arctan2(*found[f"rotation {degrees} degrees"].T[::-1]))
        assert np.abs(angle) == pytest.approx(degrees, abs=0.3)
        assert 60 < (angle > 0).sum() < 140, "both ways"
    for percent in (70, 80, 90, 110, 120):
        assert found[f"scale {percent}%"] == pytest.approx(np.full((200, 2), [8 * percent / 100, 0]), abs=0.1)


def test_strokes_grow_and_shrink_by_the_rows_amount() -> None:
    stroke = np.zeros((28, 28), np.uint8)
    stroke[:, 12:16] = 200
    found = damaged(stroke, 1)
    names = ("finer strokes 1 px", "none", "broader strokes 1 px", "broader strokes 2 px")
    assert [(found[name][0, 14] == 200).sum() for name in names] == [3, 4, 5, 6]
    assert all(set(np.unique(found[name])) == {0, 200} for name in names)


def test_blur_noise_inversion_and_fading_have_the_rows_amount() -> None:
    half = np.full((28, 28), 100, np.uint8)
    half[:, 14:] = 140
    found = damaged(half)
    for sigma in (20, 40):
        noise = found[f"noise sigma {sigma} of 255"][:, :, :14].astype(float) - 100
        assert noise.std() == pytest.approx(sigma, rel=0.02)
        assert np.abs(noise.mean(axis=0)).max() < sigma, "each image has its own"
    # A blurred step is the Gaussian's distribution function: at a distance of sigma, 16 % of the other side's grey remain.
    edge = found["blur sigma 1.5 px"][0, 14, 11:17]
    np.testing.assert_allclose(edge, [102, 106, 115, 125, 134, 138], atol=1)
    assert set(np.unique(found["inversion"])) == {155, 115}
    assert set(np.unique(found["faint ink 50%"])) == {50, 70}


def test_an_occluding_square_lies_inside_the_image_at_any_position() -> None:
    found = damaged(np.full((28, 28), 255, np.uint8), 500)
    for pixels in (4, 6, 8, 10):
        hidden = found[f"occlusion {pixels} x {pixels} px"] == 0
        assert set(hidden.sum(axis=(1, 2))) == {pixels**2}
        assert set(hidden.any(axis=1).sum(axis=1)) == {pixels}
        assert hidden.any(axis=(0, 1)).all(), "in every column"
        assert hidden.any(axis=(0, 2)).all(), "in every row"


def test_the_second_source_is_framed_like_mnist_and_recognized(bundled: ModelVersion) -> None:
    digits = second_source()
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.images.shape == (1797, 28, 28)
    assert (digits.images.max(axis=(1, 2)) == 255).all()
    assert np.abs(middle(digits.images) - 0.5).max() <= 0.6, "MNIST's are within half a pixel of index 14"
    sizes = np.stack([(digits.images > 0).any(axis=axis).sum(axis=1) for axis in (1, 2)])
    assert sizes.max() == 20
    assert np.mean(sizes.max(axis=0) == 20) > 0.99
    read = Exported(bundled.path).answers(digits.images, 100)[1].argmax(axis=1)
    assert np.mean(read == digits.labels) > 0.9


def test_sources_are_other_writers_digits_and_the_test_images_with_a_thick_pen(images: Images) -> None:
    (_, scanned), (_, thick) = sources(Examples(images[:50], np.arange(50, dtype=np.uint8) % 10))
    assert len(scanned) == 1797
    assert thick.labels.tolist() == [*range(10)] * 5
    assert (thick.images > 0).sum() > 1.2 * (images[:50] > 0).sum()
    sizes = np.stack([(thick.images > 0).any(axis=axis).sum(axis=1) for axis in (1, 2)]).max(axis=0)
    assert set(sizes) == {20}, "framed again"
