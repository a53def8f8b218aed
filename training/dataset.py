"""MNIST, checked by its checksum before it is used, and split into the parts that each stage may see."""

import hashlib
import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


class DatasetError(Exception):
    """The data can't be had, or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Examples:
    """Images with their true digits.

    Attributes:
        images: (N, 28, 28) uint8, 0 paper, 255 ink.
        labels: (N,) uint8, 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """The SHA-256 of images and labels, in hexadecimal."""
        parts = (np.ascontiguousarray(part).data for part in (self.images, self.labels))
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def __getitem__(self, chosen: np.ndarray | slice) -> "Examples":
        return Examples(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """Examples to learn from, and examples to be judged on once.

    Attributes:
        train: what to learn from, and to hold out from.
        test: what to be judged on.
        sha256: of the file that they came in.
        writers: (N,), a number for each writer of `train`'s images; None where nobody knows them.
    """

    train: Examples
    test: Examples
    sha256: str
    writers: np.ndarray | None = None


def load_mnist(path: Path | None = None, writers: Path | None = None) -> Dataset:
    """Reads MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Args:
        path: an `mnist.npz` as Keras ships it; None takes the one in Keras' cache, downloading it there when missing.
        writers: an npz file whose array `train`, (60000,) integers, tells the training images' writers apart. MNIST itself
            does not name them; QMNIST (Yadav & Bottou 2019, arXiv 1905.10498) found them again.

    Raises:
        DatasetError: a file can't be read or downloaded, its SHA-256 is not MNIST's, or it does not hold the writers.

    Source: LeCun, Cortes and Burges, as packed by keras.datasets.mnist (CC BY-SA 3.0).
    """
    dataset = _download() if path is None else _read(path)
    return dataset if writers is None else replace(dataset, writers=_read_writers(writers))


def _download() -> Dataset:
    try:
        train, test = keras.datasets.mnist.load_data()  # checks the same SHA-256, of a cached file too
    except Exception as error:  # Keras wraps every network failure in a bare Exception
        raise DatasetError(
            f"MNIST is not in Keras' cache and could not be downloaded ({error}). Copy mnist.npz from a machine that "
            "has it to ~/.keras/datasets/, or name the copy with --data PATH or DIGITS_DATA=PATH."
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
            f"{path} is not mnist.npz as Keras ships it: its SHA-256 is {sha256}, MNIST's is {MNIST_SHA256}. "
            "Fetch it again, or point --data (or DIGITS_DATA) at a good copy."
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Dataset(Examples(arrays["x_train"], arrays["y_train"]), Examples(arrays["x_test"], arrays["y_test"]), sha256)


def _read_writers(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            writers: np.ndarray = arrays["train"]
    except OSError as error:
        raise DatasetError(f"cannot read the writers from {path}: {error.strerror or error}.") from error
    except (AttributeError, TypeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:  # NumPy's for no npz
        raise DatasetError(
            f"{path} does not hold the writers of MNIST's training images: it is no npz file with an array `train`"
        ) from error
    if writers.shape != (60_000,) or writers.dtype.kind not in "iu":
        raise DatasetError(
            f"{path} does not hold the writers of MNIST's training images: `train` is {writers.dtype} {writers.shape}, "
            "not integers (60000,)"
        )
    return writers


def hold_out(dataset: Dataset, count: int, seed: int) -> tuple[Examples, Examples]:
    """Splits the training images into those to learn from and `count` that fitting never sees.

    Where the writers are known, the two share none: whole writers are drawn until `count` images are there, and what the
    last of them wrote beyond it is left out of both. Otherwise the split is random, and somebody who wrote an image in one
    part wrote more in the other.

    Raises:
        DatasetError: there are so few writers that less than half of what should be left to learn from is.
    """
    examples, random = dataset.train, np.random.default_rng(seed)
    if count == 0:
        return examples, examples[:0]
    if dataset.writers is None:
        kept, held = np.split(random.permutation(len(examples)), [len(examples) - count])
    else:
        writers, of_image = np.unique(dataset.writers, return_inverse=True)
        drawn = random.permutation(len(writers))[of_image]  # (N,): when the image's writer is drawn
        order = np.argsort(drawn, kind="stable")
        held = order[:count]
        kept = order[count:][drawn[order[count:]] > drawn[held[-1]]]
        if len(kept) < (len(examples) - count) / 2:
            raise DatasetError(
                f"the writers are too few, {len(writers)}: with {count:,} images of other writers held out, "
                f"{len(kept):,} of {len(examples) - count:,} are left to learn from"
            )
    return examples[kept], examples[held]
