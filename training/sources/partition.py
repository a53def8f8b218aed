"""Splits test images off data that come without a test part, always the same ones."""

import hashlib
from dataclasses import replace

import numpy as np

from training.dataset import Dataset, Examples, combined_digest

TEST_SHARE = 1 / 5


def split_off_test(
    examples: Examples,
    name: str,
    kind: str,
    no_digits: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Chooses test images by checksum: whole writers where the writers are known, else single images.

    The choice depends on the images and writers alone, neither on their order nor on a seed. Writers, or images, are taken
    in the order of their checksums until a fifth of the images is reached. Equal images stay together.

    Args:
        examples: all images. A single writer counts as unknown.
        name: as in `Dataset`.
        kind: as in `Dataset`.
        no_digits: as in `Dataset`; None for no such images.
        notes: as in `Dataset`.
    """
    writers = examples.writers
    if writers is None or len(np.unique(writers)) == 1:
        by_writer, keys = False, [image.tobytes() for image in examples.images]
    else:
        by_writer, keys = True, [str(one).encode() for one in writers.tolist()]
    checksums = np.array([hashlib.sha256(key).hexdigest() for key in keys])
    _, group, counts = np.unique(checksums, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts  # images of the groups with a lower checksum
    tested = (before < TEST_SHARE * len(examples))[group]
    known = examples if by_writer else replace(examples, writers=None)
    train, test = known[~tested], known[tested]
    rule = f"{len(test):,} of {len(examples):,} images, set aside {'by writer' if by_writer else 'by checksum'}"
    if writers is not None and not by_writer:
        notes = (*notes, "one writer wrote all images, so that the writer counts as unknown")
    rest = np.zeros((0, 28, 28), np.uint8) if no_digits is None else no_digits
    return Dataset(train, test, combined_digest(train, test), name, kind, rest, rule, notes)
