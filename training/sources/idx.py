"""Reads IDX files, MNIST's first format, plain or compressed by gzip; EMNIST's are named similarly.

Source: Y. LeCun, C. Cortes & C. J. C. Burges, The MNIST database: a magic number (two zero bytes, the type 8 for unsigned
bytes, the number of dimensions), each dimension as a big-endian 32-bit integer, then the values.
"""

import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from training.dataset import Dataset, DatasetError, Examples, combined_digest
from training.sources.partition import split_off_test
from training.sources.plausible import require_digits, require_label_shape, require_shape

UNSIGNED_BYTES = 8
_NAME = re.compile(r"(?P<set>.*?)-?(?P<part>train|test|t10k)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?")


def found_in(path: Path) -> bool:
    """Tests if a folder has IDX files, or if `path` names a set of such files, as in `emnist/emnist-digits`."""
    return bool(_sets(path) if path.is_dir() else _sets(path.parent).get(path.name))


def names_a_set(path: Path) -> bool:
    """Tests if `path` is no file, but the beginning of the names of IDX files."""
    return not path.exists() and path.parent.is_dir() and found_in(path)


def read(path: Path) -> Dataset:
    """Reads a set of IDX files: training images and labels, and test images and labels if there are any.

    Args:
        path: a folder with files such as train-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte. Where it holds several sets,
            as EMNIST's archive does, the folder and the common beginning of the names: emnist/emnist-digits.

    Raises:
        DatasetError: a file is missing, damaged, too large, or not what its name says; or the folder holds several sets.
    """
    sets = _sets(path) if path.is_dir() else _sets(path.parent)
    name = "" if path.is_dir() else path.name
    if path.is_dir() and len(sets) > 1:
        names = sorted(sets)
        example = next((one for one in names if "digits" in one), names[0])
        raise DatasetError(f"{path} has several sets of IDX files: {', '.join(names)}. Name one: --data {path / example}")
    files = sets[name] if name else next(iter(sets.values()))
    train = _examples(files, "train")
    if not any(part == "test" for part, _ in files):
        return split_off_test(train, str(path), "idx")
    test = _examples(files, "test")
    return Dataset(train, test, combined_digest(train, test), str(path), "idx")


def _sets(folder: Path) -> dict[str, dict[tuple[str, str], Path]]:
    """Returns the IDX files of a folder by the set's name, and by part ("train", "test") and content. Plain files win."""
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for file in sorted(folder.iterdir(), reverse=True):  # so that a file comes after its compressed twin
        named = _NAME.fullmatch(file.name)
        if named:
            part = "train" if named["part"] == "train" else "test"
            sets.setdefault(named["set"], {})[part, named["what"]] = file
    return sets


def _examples(files: dict[tuple[str, str], Path], part: str) -> Examples:
    folder = next(iter(files.values())).parent
    missing = [what for what in ("images", "labels") if (part, what) not in files]
    if missing:
        raise DatasetError(f"{folder} has no IDX file with the {missing[0]} of the {part} part")
    images, labels = files[part, "images"], files[part, "labels"]
    return require_digits(str(images), _values(images, 3), _values(labels, 1))


def _values(path: Path, dimensions: int) -> np.ndarray:
    """Returns the values of a file, uint8, with 1 or 3 dimensions. The header is checked before memory is reserved."""
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            zero, kind, found = struct.unpack(">HBB", _exactly(file, 4))
            if (zero, kind, found) != (0, UNSIGNED_BYTES, dimensions):
                raise DatasetError(
                    f"{path} is not an IDX file of unsigned bytes with {dimensions} dimension(s): it begins with type "
                    f"{kind}, dimensions {found}"
                )
            shape = struct.unpack(f">{dimensions}I", _exactly(file, 4 * dimensions))
            (require_shape if dimensions == 3 else require_label_shape)(str(path), shape, "uint8")
            content = _exactly(file, int(np.prod(shape)))
            if file.read(1):
                raise DatasetError(f"{path} is longer than its header says: {shape}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is damaged or was cut off: {error}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _exactly(file: BinaryIO, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise EOFError(f"{len(content):,} bytes where {count:,} are expected")
    return content
