"""MNIST, checked by its checksum before it is used, and split into the parts that each stage may see."""

import hashlib
import io
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Dataset:
    """Examples to learn from, examples to be judged on once, and the SHA-256 of the file that they came in."""

    train: Examples
    test: Examples
    sha256: str


def load_mnist(path: Path | None = None) -> Dataset:
    """Reads MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Args:
        path: an `mnist.npz` as Keras ships it; None takes the one in Keras' cache, downloading it there when missing.

    Raises:
        DatasetError: there is no such file, it can't be downloaded, or its SHA-256 is not MNIST's.

    Source: LeCun, Cortes and Burges, as packed by keras.datasets.mnist (CC BY-SA 3.0).
    """
    if path is None:
        try:
            train, test = keras.datasets.mnist.load_data()  # checks the same SHA-256, of a cached file too
        except Exception as error:  # Keras wraps every network failure in a bare Exception
            raise DatasetError(
                f"MNIST is not in Keras' cache and could not be downloaded ({error}). Copy mnist.npz from a machine that "
                "has it to ~/.keras/datasets/, or name the copy with --data PATH or DIGITS_DATA=PATH."
            ) from error
        return Dataset(Examples(*train), Examples(*test), MNIST_SHA256)
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


def hold_out(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """Splits `examples` at random into all but `count` of them, and the `count` that fitting never sees."""
    order = np.random.default_rng(seed).permutation(len(examples))
    kept, held = np.split(order, [len(examples) - count])
    return (
        Examples(examples.images[kept], examples.labels[kept]),
        Examples(examples.images[held], examples.labels[held]),
    )
