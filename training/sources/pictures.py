"""Reads a folder of pictures by digit. Each picture passes the framer of the service, so that both see the same images.

FOLDER/7/scan-1.png           a 7 by an unknown writer
FOLDER/7/ann/scan-2.jpg       a 7 by the writer "ann"; either all pictures have a writer, or none counts
FOLDER/none/comma.png         no digit
FOLDER/train/7/..., FOLDER/test/7/...    the same with a test part of your own
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving.imaging.crop import frame_crop
from serving.imaging.headers import CropError
from training.dataset import Dataset, DatasetError, Examples, combined_digest
from training.sources.partition import split_off_test
from training.sources.plausible import MOST_IMAGES

NO_DIGIT_FOLDER = "none"  # name of the folder of pictures that show no digit
CLASSES = (*"0123456789", NO_DIGIT_FOLDER)
ENDINGS = (".png", ".jpg", ".jpeg")
MOST_BYTES = 8 << 20  # of one file
MOST_LEFT_OUT = 0.25  # share of the pictures of digits
NAMED = 3  # of the pictures that were left out, in messages


@dataclass
class _Part:
    """What was read from one folder of classes."""

    images: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)
    no_digits: list[np.ndarray] = field(default_factory=list)
    refused: int = 0  # pictures of no digit in which the framer finds none either
    left_out: list[str] = field(default_factory=list)  # pictures of digits, each with the reason

    def examples(self, names: list[str]) -> Examples:
        """Returns the pictures of digits. A writer's number is the name's place in `names`, which are sorted."""
        known = np.searchsorted(names, self.writers) if all(self.writers) else None
        return Examples(np.array(self.images, np.uint8).reshape(-1, 28, 28), np.array(self.labels, np.uint8), known)


def read(folder: Path) -> Dataset:
    """Reads all pictures, PNG or JPEG, in the folders 0 to 9 and none, or in these folders below train/ and test/.

    A picture that can't be decoded, or in which the framer finds no whole digit, is left out. Notes of the dataset count
    these pictures and name the first.

    Raises:
        DatasetError: the folder has another structure, has no picture of a digit, or over a quarter of the pictures would be
            left out.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        parts = {part: _read_classes(folder / part) for part in (("train", "test") if "train" in names else ("",))}
    except OSError as error:
        raise DatasetError(f"cannot read {error.filename or folder}: {error.strerror}") from error
    for part, found in parts.items():
        _require_most(folder / part, found)
    read = [name for part in parts.values() for name in part.left_out]
    notes = []
    if read:
        more = f", and {len(read) - NAMED:,} more" if len(read) > NAMED else ""
        notes.append(f"{len(read):,} pictures were left out: {'; '.join(read[:NAMED])}{more}")
    refused = sum(part.refused for part in parts.values())
    if refused:
        notes.append(
            f"in {refused:,} pictures of `{NO_DIGIT_FOLDER}` the framer finds no digit, so that the service refuses them"
        )
    no_digits = np.array([image for part in parts.values() for image in part.no_digits], np.uint8).reshape(-1, 28, 28)
    names = sorted({writer for part in parts.values() for writer in part.writers if writer})
    examples = [part.examples(names) for part in parts.values()]
    if len(examples) == 2:
        train, test = examples
        digest = combined_digest(train, test)
        return Dataset(train, test, digest, str(folder), "pictures", no_digits, notes=tuple(notes))
    return split_off_test(examples[0], str(folder), "pictures", no_digits, tuple(notes))


def _read_classes(folder: Path) -> _Part:
    """Reads the folders of the classes."""
    unknown = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.name not in CLASSES]
    if unknown:
        raise DatasetError(
            f"{folder} has {unknown[0]!r}; expected folders named by their digit, 0 to 9, and `{NO_DIGIT_FOLDER}` for "
            "pictures without a digit, or train and test with such folders, or IDX files"
        )
    part = _Part()
    for name in CLASSES:
        if (folder / name).is_dir():
            for picture, writer in _pictures(folder / name):
                _add(part, name, picture, writer)
                if len(part.images) + len(part.left_out) + len(part.no_digits) > MOST_IMAGES:
                    raise DatasetError(f"{folder} has more than {MOST_IMAGES:,} pictures")
    return part


def _pictures(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields each file of a class with its writer, "" if unknown, in the order of their names."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from ((file, path.name) for file in sorted(path.iterdir()) if not file.name.startswith("."))
        else:
            yield path, ""


def _add(part: _Part, name: str, picture: Path, writer: str) -> None:
    image, reason = _framed(picture)
    if name == NO_DIGIT_FOLDER:
        if image is None:
            part.refused += 1
        else:
            part.no_digits.append(image)
    elif image is None:
        part.left_out.append(f"{name}/{picture.name} ({reason})")
    else:
        part.images.append(image)
        part.labels.append(int(name))
        part.writers.append(writer)


def _framed(picture: Path) -> tuple[np.ndarray | None, str]:
    """Frames a picture as the service does. Returns the image, (28, 28) uint8, or None and the reason."""
    if picture.suffix.lower() not in ENDINGS:
        return None, "neither PNG nor JPEG"
    if picture.stat().st_size > MOST_BYTES:
        return None, f"larger than {MOST_BYTES >> 20} MB"
    try:
        framed = frame_crop(picture.read_bytes())
    except CropError as error:
        return None, str(error)
    return (framed.image, "") if framed.whole else (None, "no whole digit is found in it")


def _require_most(folder: Path, part: _Part) -> None:
    total = len(part.images) + len(part.left_out)
    if not part.images:
        first = f"; the first is {part.left_out[0]}" if part.left_out else ""
        raise DatasetError(f"{folder} has {total:,} files in folders 0 to 9, and no digit is found in any{first}")
    if len(part.left_out) > MOST_LEFT_OUT * total:
        raise DatasetError(
            f"{folder}: {len(part.left_out):,} of {total:,} pictures can't be used, which is more than {MOST_LEFT_OUT:.0%}: "
            f"{'; '.join(part.left_out[:NAMED])}"
        )
