import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.imaging.crop import frame_crop
from tests.support.captured_store import Store, answers
from tests.support.own_data import idx, write_idx, write_pictures
from training.dataset import MNIST_SHA256, Dataset, DatasetError, Examples, combined_digest
from training.sources import load_dataset, require_every_digit

Drawings = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def pairs(*parts: Examples) -> list[tuple[bytes, int]]:
    """Images with their labels, in a fixed order."""
    return sorted(
        (image.tobytes(), int(label)) for part in parts for image, label in zip(part.images, part.labels, strict=True)
    )


def test_mnist_is_the_file_that_keras_ships(mnist_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mnist = load_dataset(str(mnist_path))
    assert (mnist.train.images.shape, mnist.test.images.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert mnist.train.images.dtype == mnist.train.labels.dtype == np.uint8
    assert (mnist.name, mnist.kind, mnist.sha256) == ("MNIST", "mnist", MNIST_SHA256)
    assert np.bincount(mnist.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert not capsys.readouterr().out


def test_mnist_is_recognised_in_idx_files(mnist_path: Path, tmp_path: Path) -> None:
    mnist = load_dataset(str(mnist_path))
    write_idx(tmp_path, mnist.train.images, mnist.train.labels)
    write_idx(tmp_path, mnist.test.images, mnist.test.labels, "t10k")
    found = load_dataset(str(tmp_path))
    assert (found.name, found.sha256) == ("MNIST", MNIST_SHA256)


def test_mnist_with_writers_in_its_file_keeps_the_writers(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.sources.load.MNIST_CONTENT", combined_digest(drawn.train, drawn.test))
    arrays = {"x_train": drawn.train.images, "y_train": drawn.train.labels, "writers": np.arange(800) // 40}
    np.savez(tmp_path / "own.npz", x_test=drawn.test.images, y_test=drawn.test.labels, allow_pickle=False, **arrays)
    found = load_dataset(str(tmp_path / "own.npz"))
    assert (found.name, found.kind, found.sha256) == ("MNIST", "mnist", MNIST_SHA256)
    assert found.train.writers is not None
    assert found.train.writers.tolist() == (np.arange(800) // 40).tolist()


def test_a_failed_download_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise Exception("URL fetch failure on https://example.invalid/mnist.npz: None -- no route to host")

    monkeypatch.setattr("keras.datasets.mnist.load_data", no_network)  # the test must not depend on the network
    with pytest.raises(DatasetError, match=r"no route to host.*Copy mnist.npz.*--data PATH or DIGITS_DATA=PATH"):
        load_dataset()


def test_an_npz_file_may_have_a_test_part_and_writers(drawn: Dataset, tmp_path: Path) -> None:
    arrays = {"x_train": drawn.train.images, "y_train": drawn.train.labels.astype(np.int64)}
    arrays |= {"x_test": drawn.test.images, "y_test": drawn.test.labels, "writers": np.arange(800) // 40}
    np.savez_compressed(tmp_path / "own.npz", allow_pickle=False, **arrays)
    own = load_dataset(str(tmp_path / "own.npz"))
    assert pairs(own.train) == pairs(drawn.train)
    assert pairs(own.test) == pairs(drawn.test)
    assert own.train.labels.dtype == np.uint8
    assert own.train.writers is not None
    assert own.train.writers.tolist() == (np.arange(800) // 40).tolist()
    about = own.record()
    assert (about["kind"], about["training_images"], about["test_images"], about["writers"]) == ("npz", 800, 200, 20)


def test_test_images_are_split_off_by_writer_in_any_order(drawings: Drawings, tmp_path: Path) -> None:
    images, labels = drawings
    writers = np.array([f"writer {number // 25}" for number in range(1000)])
    found = []
    for order in (np.arange(1000), np.random.default_rng(0).permutation(1000)):
        np.savez(tmp_path / "own.npz", images=images[order], labels=labels[order], writers=writers[order])
        found.append(load_dataset(str(tmp_path / "own.npz")))
    first, second = found
    assert pairs(first.test) == pairs(second.test)
    assert pairs(first.train, first.test) == pairs(Examples(images, labels))
    assert 200 <= len(first.test) < 225, "a fifth, in whole writers of 25 images"
    assert first.train.writers is not None
    assert first.test.writers is not None
    assert not set(first.train.writers.tolist()) & set(first.test.writers.tolist())
    assert first.test_part == f"{len(first.test)} of 1,000 images, set aside by writer"


def test_without_writers_a_fifth_of_the_images_is_split_off(drawings: Drawings, tmp_path: Path) -> None:
    images, labels = drawings
    twice = np.concatenate([images, images[:100]])
    np.savez(tmp_path / "own.npz", images=twice, labels=np.concatenate([labels, labels[:100]]))
    own = load_dataset(str(tmp_path / "own.npz"))
    assert len(own.test) == pytest.approx(220, abs=1)
    assert not set(pairs(own.train)) & set(pairs(own.test)), "equal images stay together"
    assert own.train.writers is None


def test_a_single_writer_counts_as_unknown_and_is_named_as_the_reason(
    drawings: Drawings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = drawings
    np.savez(tmp_path / "own.npz", images=images, labels=labels, writers=np.zeros(1000, int))
    assert load_dataset(str(tmp_path / "own.npz")).train.writers is None
    assert "data       one writer wrote all images, so that the writer counts as unknown" in capsys.readouterr().out


def test_idx_files_are_found_under_the_names_of_emnist(drawn: Dataset, tmp_path: Path) -> None:
    for name in ("letters", "digits"):
        write_idx(tmp_path, drawn.train.images.transpose(0, 2, 1), drawn.train.labels, f"emnist-{name}-train")
        write_idx(tmp_path, drawn.test.images.transpose(0, 2, 1), drawn.test.labels, f"emnist-{name}-test")
    with pytest.raises(
        DatasetError, match=r"several sets .*emnist-digits, emnist-letters. Name one: --data .*/emnist-digits"
    ):
        load_dataset(str(tmp_path))
    with pytest.raises(DatasetError, match=r"seem to be transposed.*EMNIST's files are: add --transposed"):
        load_dataset(str(tmp_path / "emnist-digits"))
    own = load_dataset(str(tmp_path / "emnist-digits"), transposed=True)
    assert (pairs(own.train), pairs(own.test)) == (pairs(drawn.train), pairs(drawn.test))


def test_plain_idx_files_need_no_test_part(drawings: Drawings, tmp_path: Path) -> None:
    images, labels = drawings
    (tmp_path / "train-images.idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx(labels))
    own = load_dataset(str(tmp_path))
    assert pairs(own.train, own.test) == pairs(Examples(images, labels))
    assert len(own.test) == 200


def test_pictures_are_framed_as_the_service_frames_crops(drawings: Drawings, tmp_path: Path) -> None:
    images, labels = drawings[0][:200], drawings[1][:200]
    write_pictures(tmp_path, images, labels)
    (tmp_path / "7" / ".hidden").write_text("no picture")
    own = load_dataset(str(tmp_path))
    files = [file for file in tmp_path.rglob("*.*g") if file.name[0] != "."]
    framed = [frame_crop(file.read_bytes()).image for file in files]
    expected = Examples(np.stack(framed), np.array([int(file.parent.name) for file in files], np.uint8))
    assert pairs(own.train, own.test) == pairs(expected)
    assert own.record()["writers"] is None


def test_folders_of_pictures_may_name_writers_test_and_no_digit(drawings: Drawings, tmp_path: Path) -> None:
    images, labels = drawings[0][:300], drawings[1][:300]
    writers = [f"writer{number // 50}" for number in range(200)]
    write_pictures(tmp_path / "train", images[:200], labels[:200], writers)
    write_pictures(tmp_path / "test", images[200:], labels[200:], ["writer3"] * 50 + ["another"] * 50)
    write_pictures(tmp_path / "test", images[:3], ["none"] * 3)
    write_pictures(tmp_path / "train", [np.zeros((28, 28), np.uint8)], ["none"])
    own = load_dataset(str(tmp_path))
    assert (len(own.train), len(own.test), len(own.no_digits)) == (200, 100, 3)
    assert own.train.writers is not None
    assert own.test.writers is not None
    assert np.bincount(own.train.writers, minlength=5).tolist() == [0, 50, 50, 50, 50]
    assert np.bincount(own.test.writers).tolist() == [50, 0, 0, 0, 50], "a writer has one number in both parts"
    assert own.notes == ("in 1 pictures of `none` the framer finds no digit, so that the service refuses them",)


def test_unusable_pictures_are_counted_and_named(drawings: Drawings, tmp_path: Path) -> None:
    write_pictures(tmp_path, drawings[0][:100], drawings[1][:100])
    (tmp_path / "3" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "4" / "blank.png").write_bytes((tmp_path / "3" / "0013.png").read_bytes())
    write_pictures(tmp_path / "blank", [np.zeros((28, 28), np.uint8)], ["x"])
    next((tmp_path / "blank").rglob("*.jpg")).rename(tmp_path / "4" / "blank.jpg")
    (tmp_path / "blank" / "x").rmdir()
    (tmp_path / "blank").rmdir()
    (tmp_path / "5" / "scan.tif").write_bytes(b"")
    own = load_dataset(str(tmp_path))
    assert len(own.train) + len(own.test) == 101
    [note] = [note for note in own.notes if "left out" in note]
    assert note.startswith("3 pictures were left out: 3/broken.png (neither a PNG nor a JPEG")
    assert "4/blank.jpg (no whole digit is found in it); 5/scan.tif (neither PNG nor JPEG)" in note


def test_captured_images_are_data_with_every_fifth_answer_as_test(drawings: Drawings, tmp_path: Path) -> None:
    store = Store(tmp_path / "captured.db")
    for answer, image, label in zip(answers(200), *drawings, strict=False):
        store.capture(answer, image)
        store.report(answer, str(label))
    own = load_dataset(store.url)
    assert pairs(own.train, own.test) == pairs(Examples(drawings[0][:200], drawings[1][:200]))
    assert (own.kind, own.name) == ("captured", store.url)
    assert 20 <= len(own.test) <= 60


def test_training_needs_images_of_all_ten_digits(drawings: Drawings, tmp_path: Path) -> None:
    images, labels = drawings
    np.savez(tmp_path / "own.npz", images=images[labels != 7], labels=labels[labels != 7])
    own = load_dataset(str(tmp_path / "own.npz"))
    with pytest.raises(DatasetError, match="no training image shows a 7; training needs all ten digits in both parts"):
        require_every_digit(own)


def test_a_file_without_the_writers_is_refused(drawn: Dataset, tmp_path: Path) -> None:
    arrays = {"x_train": drawn.train.images, "y_train": drawn.train.labels}
    np.savez(tmp_path / "own.npz", x_test=drawn.test.images, y_test=drawn.test.labels, allow_pickle=False, **arrays)
    own = str(tmp_path / "own.npz")
    np.savez(tmp_path / "writers.npz", train=np.arange(800) // 10)
    found = load_dataset(own, tmp_path / "writers.npz").train.writers
    assert found is not None
    assert found.tolist() == (np.arange(800) // 10).tolist()
    with pytest.raises(DatasetError, match=r"cannot read the writers from .*none.npz: No such file"):
        load_dataset(own, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="does not contain the writers"):
        load_dataset(own, tmp_path / "text.npz")
    np.save(tmp_path / "bare.npy", np.arange(60_000))
    with pytest.raises(DatasetError, match="expected an npz file with an array `train`"):
        load_dataset(own, tmp_path / "bare.npy")
    np.savez(tmp_path / "few.npz", train=np.arange(10))
    with pytest.raises(DatasetError, match=r"`train` is int64 \(10,\), expected integers \(800,\)"):
        load_dataset(own, tmp_path / "few.npz")
    np.savez(tmp_path / "whole.npz", images=drawn.train.images, labels=drawn.train.labels)
    with pytest.raises(DatasetError, match=r"has no test images of its own; put the writers into the data"):
        load_dataset(str(tmp_path / "whole.npz"), tmp_path / "writers.npz")


def test_a_gzip_file_that_was_cut_off_is_refused(drawings: Drawings, tmp_path: Path) -> None:
    write_idx(tmp_path, *drawings)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="is damaged or was cut off"):
        load_dataset(str(tmp_path))
    file.write_bytes(whole[:-6] + bytes(6))
    with pytest.raises(DatasetError, match="is damaged or was cut off: CRC check failed"):
        load_dataset(str(tmp_path))
    file.write_bytes(gzip.compress(idx(drawings[0]) + b"more", 1))
    with pytest.raises(DatasetError, match="is longer than its header says"):
        load_dataset(str(tmp_path))
