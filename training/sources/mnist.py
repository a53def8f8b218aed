"""MNIST: Keras' copy of the data, the checksum that recognises MNIST in any form, and the numbers of its writers."""

import zipfile
from pathlib import Path

import numpy as np

from training.dataset import MNIST_SHA256, Dataset, DatasetError, Examples

# SHA-256 over the digests of MNIST's training and test images: equal whether they come as npz or as IDX files.
MNIST_CONTENT = "0354647cf18a5af21b1abb2cad452982da3d2d52b9be49b654343b0f20c67b39"


def download_mnist() -> Dataset:
    """Loads MNIST, 60,000 training and 10,000 test images, from Keras' cache; downloads the file if it is missing.

    Raises:
        DatasetError: the file can't be downloaded.

    Source: LeCun, Cortes and Burges, as packed by keras.datasets.mnist (CC BY-SA 3.0).
    """
    import keras  # only here: loading Keras takes seconds, and reading a file does not need it

    try:
        train, test = keras.datasets.mnist.load_data()  # checks the SHA-256, also for a cached file
    except Exception as error:  # Keras raises a bare Exception for every network failure
        raise DatasetError(
            f"MNIST is not in Keras' cache and could not be downloaded ({error}). Copy mnist.npz from another machine to "
            "~/.keras/datasets/, or name a copy with --data PATH or DIGITS_DATA=PATH."
        ) from error
    return Dataset(Examples(*train), Examples(*test), MNIST_SHA256)


def read_writers(path: Path, images: int) -> np.ndarray:
    """Reads the writers of the training images.

    MNIST does not name its writers; QMNIST (Yadav & Bottou 2019, arXiv 1905.10498) recovered them.

    Args:
        path: an npz file with the array `train`, (images,) integers.
        images: number of training images.

    Raises:
        DatasetError: the file can't be read, or does not hold one number per training image.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            writers: np.ndarray = arrays["train"]
    except OSError as error:
        raise DatasetError(f"cannot read the writers from {path}: {error.strerror or error}.") from error
    except (AttributeError, TypeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:  # NumPy's for a bad npz
        raise DatasetError(
            f"{path} does not contain the writers of the training images: expected an npz file with an array `train`"
        ) from error
    if writers.shape != (images,) or writers.dtype.kind not in "iu":
        raise DatasetError(
            f"{path} does not contain the writers of the training images: `train` is {writers.dtype} {writers.shape}, "
            f"expected integers ({images},). For other data, unset DIGITS_WRITERS."
        )
    return writers
