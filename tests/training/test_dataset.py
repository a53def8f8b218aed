import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training import dataset
from training.dataset import Dataset, DatasetError, Examples, hold_out, load_mnist


def numbered(count: int, writers: NDArray[np.int16] | None = None) -> Dataset:
    """Training images whose pixels all hold the image's number."""
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    examples = Examples(images, np.zeros(count, np.uint8))
    return Dataset(examples, examples, "none", writers)


def test_a_file_that_is_not_mnist_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "mnist.npz"
    file.write_bytes(b"something else")
    with pytest.raises(DatasetError, match=f"SHA-256 is {hashlib.sha256(b'something else').hexdigest()}.*--data"):
        load_mnist(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read MNIST from .*none.npz: No such file"):
        load_mnist(tmp_path / "none.npz")


def test_a_failed_download_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise Exception("URL fetch failure on https://example.invalid/mnist.npz: None -- no route to host")

    monkeypatch.setattr("keras.datasets.mnist.load_data", no_network)  # the test must not depend on the network
    with pytest.raises(DatasetError, match=r"no route to host.*Copy mnist.npz.*--data PATH or DIGITS_DATA=PATH"):
        load_mnist()


def test_mnist_is_the_file_that_keras_ships(mnist_path: Path) -> None:
    mnist = load_mnist(mnist_path)
    assert (mnist.train.images.shape, mnist.test.images.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert mnist.train.images.dtype == mnist.train.labels.dtype == np.uint8
    assert mnist.sha256 == dataset.MNIST_SHA256
    assert np.bincount(mnist.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


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


def test_a_file_without_the_writers_is_refused(mnist_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read the writers from .*none.npz: No such file"):
        load_mnist(mnist_path, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="does not contain the writers"):
        load_mnist(mnist_path, tmp_path / "text.npz")
    np.save(tmp_path / "bare.npy", np.arange(60_000))
    with pytest.raises(DatasetError, match="expected an npz file with an array `train`"):
        load_mnist(mnist_path, tmp_path / "bare.npy")
    np.savez(tmp_path / "few.npz", train=np.arange(10))
    with pytest.raises(DatasetError, match=r"`train` is int64 \(10,\), expected integers \(60000,\)"):
        load_mnist(mnist_path, tmp_path / "few.npz")
