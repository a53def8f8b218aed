"""MNIST, verified by its checksum and split into training, validation and test images."""

import hashlib
import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


class DatasetError(Exception):
    """The data are missing or invalid; the message gives the remedy."""


@dataclass(frozen=True)
class Examples:
    """Labelled images.

    Attributes:
        images: (N, 28, 28) uint8, 0 paper, 255 ink.
        labels: (N,) uint8, 0 to 9.
        writers: (N,) number of each image's writer; None if the writers are unknown.
    """

    images: np.ndarray
    labels: np.ndarray
    writers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Returns the SHA-256 of images and labels, in hexadecimal."""
        parts = (np.ascontiguousarray(part).data for part in (self.images, self.labels))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def __getitem__(self, chosen: np.ndarray | slice) -> "Examples":
        return Examples(self.images[chosen], self.labels[chosen], None if self.writers is None else self.writers[chosen])


@dataclass(frozen=True)
class Dataset:
    """Training and test examples.

    Attributes:
        train: examples for training and validation.
        test: examples for the final evaluation.
        sha256: checksum of the file that contained them.
        writers: (N,), the writer's number for each image of `train`; None if the writers are unknown.
    """

    train: Examples
    test: Examples
    sha256: str
    writers: np.ndarray | None = None


def load_mnist(path: Path | None = None, writers: Path | None = None) -> Dataset:
    """Loads MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Args:
        path: an `mnist.npz` as Keras ships it; None loads the copy in Keras' cache, and downloads it if it is missing.
        writers: an npz file whose array `train`, (60000,) integers, identifies the writers of the training images. MNIST
            itself does not name them; QMNIST (Yadav & Bottou 2019, arXiv 1905.10498) recovered them.

    Raises:
        DatasetError: a file can't be read or downloaded, its SHA-256 is not MNIST's, or it does not contain the writers.

    Source: LeCun, Cortes and Burges, as packed by keras.datasets.mnist (CC BY-SA 3.0).
    """
    dataset = _download() if path is None else _read(path)
    return dataset if writers is None else replace(dataset, writers=_read_writers(writers))


def _download() -> Dataset:
    import keras  # only here: loading Keras takes seconds, and reading a file does not need it

    try:
        train, test = keras.datasets.mnist.load_data()  # checks the same SHA-256, also for a cached file
    except Exception as error:  # Keras raises a bare Exception for every network failure
        raise DatasetError(
            f"MNIST is not in Keras' cache and could not be downloaded ({error}). Copy mnist.npz from another machine to "
            "~/.keras/datasets/, or name a copy with --data PATH or DIGITS_DATA=PATH."
        ) from error
    return Dataset(Examples(*train), Examples(*test), MNIST_SHA256)


def _read(path: Path) -> Dataset:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read MNIST from {path}: {error.strerror}.") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != MNIST_SHA256:
        raise DatasetError(
            f"{path} is not mnist.npz as Keras ships it: its SHA-256 is {sha256}, expected {MNIST_SHA256}. "
            "Download it again, or name a good copy with --data PATH or DIGITS_DATA=PATH."
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Dataset(Examples(arrays["x_train"], arrays["y_train"]), Examples(arrays["x_test"], arrays["y_test"]), sha256)


def _read_writers(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            writers: np.ndarray = arrays["train"]
    except OSError as error:
        raise DatasetError(f"cannot read the writers from {path}: {error.strerror or error}.") from error
    except (AttributeError, TypeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:  # NumPy's for a bad npz
        raise DatasetError(
            f"{path} does not contain the writers of MNIST's training images: expected an npz file with an array `train`"
        ) from error
    if writers.shape != (60_000,) or writers.dtype.kind not in "iu":
        raise DatasetError(
            f"{path} does not contain the writers of MNIST's training images: `train` is {writers.dtype} {writers.shape}, "
            "expected integers (60000,)"
        )
    return writers


def hold_out(dataset: Dataset, count: int, seed: int) -> tuple[Examples, Examples]:
    """Splits the training images into images to train on and `count` held-out images.

    If the writers are known, no writer is in both parts, and both parts name them. Whole writers are drawn until `count`
    images are held out, and the surplus images of the last writer are in neither part. Otherwise the split is random, and
    most writers are in both parts.

    Args:
        dataset: the dataset whose training images are split.
        count: number of images to hold out.
        seed: of the random split.

    Raises:
        DatasetError: no image would be left, or there are so few writers that less than half of the intended training
            images would be left.
    """
    examples, random = replace(dataset.train, writers=dataset.writers), np.random.default_rng(seed)
    if count >= len(examples):
        raise DatasetError(f"cannot hold out {count:,} of {len(examples):,} training images: some must be left to train on")
    if count == 0:
        return examples, examples[:0]
    if dataset.writers is None:
        kept, held = np.split(random.permutation(len(examples)), [len(examples) - count])
    else:
        writers, of_image = np.unique(dataset.writers, return_inverse=True)
        turn = random.permutation(len(writers))[of_image]  # (N,): position at which the image's writer is drawn
        order = np.argsort(turn, kind="stable")
        held = order[:count]
        kept = order[count:][turn[order[count:]] > turn[held[-1]]]
        if len(kept) < (len(examples) - count) / 2:
            raise DatasetError(
                f"there are too few writers ({len(writers)}): with {count:,} images of other writers held out, "
                f"only {len(kept):,} of {len(examples) - count:,} are left to train on"
            )
    return examples[kept], examples[held]
