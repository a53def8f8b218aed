"""Chooses the source by the value of `--data`, and checks what it gives."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from training.captured_images import load_captured
from training.dataset import MNIST_SHA256, Dataset, DatasetError, combined_digest
from training.sources import idx, npz, pictures
from training.sources.mnist import MNIST_CONTENT, download_mnist, read_writers
from training.sources.orientation import require_upright

FORMS = (
    "an .npz file, a folder of IDX files, a folder of pictures by digit, or the URL of a capture database "
    "(training/README.md, 'Your own data', describes each)"
)


def load_dataset(data: str | None = None, writers: Path | None = None, transposed: bool = False) -> Dataset:
    """Loads the data that `--data` names, and prints what they are unless they are MNIST.

    Args:
        data: path or URL; None loads MNIST from Keras' cache, or downloads it.
        writers: an npz file whose array `train` identifies the writer of each training image.
        transposed: True if rows and columns of the images are swapped, as in EMNIST's files.

    Returns:
        The dataset. Data that equal MNIST, in any form, are recognised by their content and named so.

    Raises:
        DatasetError: the data are missing, or not what a network can learn digits from.
    """
    dataset = download_mnist() if data is None else _read(data)
    if transposed:
        dataset = _transposed(dataset)
    if combined_digest(dataset.train, dataset.test) == MNIST_CONTENT:
        dataset = replace(dataset, sha256=MNIST_SHA256, name="MNIST", kind="mnist", notes=())
    elif dataset.kind != "captured":
        require_upright(dataset)
    if writers is not None:
        if dataset.test_part != "given":
            raise DatasetError(
                f"--writers {writers} numbers the writers of the training images, but {dataset.name} has no test images of "
                "its own; put the writers into the data instead, as the array `writers` or as folders"
            )
        dataset = replace(dataset, train=replace(dataset.train, writers=read_writers(writers, len(dataset.train))))
    if dataset.kind != "mnist":
        _print(dataset)
    return dataset


def require_every_digit(dataset: Dataset) -> None:
    """Raises DatasetError unless each of the ten digits occurs among the training images and among the test images."""
    for part, examples in (("training", dataset.train), ("test", dataset.test)):
        missing = sorted(set(range(10)) - set(np.unique(examples.labels).tolist()))
        if missing:
            raise DatasetError(
                f"{dataset.name}: no {part} image shows a {missing[0]}; training needs all ten digits in both parts"
            )


def names_a_database(data: str) -> bool:
    """Tests if a value of `--data` is a URL, as of a capture database."""
    return "://" in data


def _read(data: str) -> Dataset:
    if not data:
        raise DatasetError(f"--data is empty; expected {FORMS}")
    if names_a_database(data):
        captured = load_captured(data)
        return captured.as_dataset()
    path = Path(data)
    if path.is_dir() or idx.names_a_set(path):
        return idx.read(path) if idx.found_in(path) else pictures.read(path)
    try:
        is_archive = npz.is_archive(path)
    except OSError as error:
        raise DatasetError(f"cannot read the data {path}: {error.strerror}; expected {FORMS}") from error
    if not is_archive:
        raise DatasetError(f"{path} is not an .npz file, or was cut off; expected {FORMS}")
    return npz.read(path)


def _transposed(dataset: Dataset) -> Dataset:
    if dataset.kind not in ("npz", "idx"):
        raise DatasetError(f"--transposed is for .npz and IDX files; {dataset.name} is neither")

    def turned(images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images.transpose(0, 2, 1))

    train, test = (replace(part, images=turned(part.images)) for part in (dataset.train, dataset.test))
    notes = (*dataset.notes, "rows and columns were swapped (--transposed)")
    return replace(dataset, train=train, test=test, sha256=combined_digest(train, test), notes=notes)


def _print(dataset: Dataset) -> None:
    known = dataset.train.writers
    writers = "writers unknown" if known is None else f"{len(np.unique(known)):,} writers"
    print(
        f"data       {Path(dataset.name).name} ({dataset.kind}): {len(dataset.train):,} training and "
        f"{len(dataset.test):,} test images, {writers}"
    )
    if dataset.test_part != "given":
        print(f"data       test images: {dataset.test_part}")
    for note in dataset.notes:
        print(f"data       {note}")
