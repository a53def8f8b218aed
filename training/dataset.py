"""Labelled images in three parts: to train on, to hold out, to test on. `sources` reads them."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NO_DIGIT = 10  # label of an image that shows no digit, where such images are labelled at all
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
    """Training and test examples, and where they come from.

    Attributes:
        train: examples for training and validation.
        test: examples for the final evaluation.
        sha256: checksum of the data: of MNIST's file, or of images and labels of other data.
        name: name of the data for people: "MNIST", a path, or a database without its password.
        kind: "mnist", "npz", "idx", "pictures" or "captured".
        no_digits: (N, 28, 28) uint8, images that show no digit. Nothing is trained on them; `certify` counts each accepted
            one as an error.
        test_part: how the test images were chosen: "given", or by which rule they were set aside.
        notes: what was done to the data, a sentence each, such as which files were left out.
    """

    train: Examples
    test: Examples
    sha256: str
    name: str = "MNIST"
    kind: str = "mnist"
    no_digits: np.ndarray = field(default_factory=lambda: np.zeros((0, 28, 28), np.uint8))
    test_part: str = "given"
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Returns the entry of the run record that says what the data are."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sha256": self.sha256,
            "training_images": len(self.train),
            "test_images": len(self.test),
            "no_digit_images": len(self.no_digits),
            "writers": None if self.train.writers is None else len(np.unique(self.train.writers)),
            "test_part": self.test_part,
            "notes": list(self.notes),
        }


def combined_digest(*parts: Examples) -> str:
    """Returns the SHA-256 over the digests of several parts, in hexadecimal."""
    return hashlib.sha256("".join(part.digest() for part in parts).encode()).hexdigest()


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
    examples, random = dataset.train, np.random.default_rng(seed)
    if count >= len(examples):
        raise DatasetError(f"cannot hold out {count:,} of {len(examples):,} training images: some must be left to train on")
    if count == 0:
        return examples, examples[:0]
    if examples.writers is None:
        kept, held = np.split(random.permutation(len(examples)), [len(examples) - count])
    else:
        writers, of_image = np.unique(examples.writers, return_inverse=True)
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
