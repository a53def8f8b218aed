"""Reads .npz files. Names, shapes and types are checked in the headers, before memory is reserved for an array."""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.dataset import Dataset, DatasetError, Examples, combined_digest
from training.sources.partition import split_off_test
from training.sources.plausible import require_digits, require_label_shape, require_shape

NAMES = "`x_train`, `y_train`, `x_test` and `y_test`, or `images` and `labels`"
LONGEST_NAME = 64  # characters of a writer's name

_UNREADABLE = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Tests if a file is a zip archive, as .npz files are. Raises OSError."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file)


def read(path: Path) -> Dataset:
    """Reads images and labels.

    Args:
        path: a file with the arrays `x_train`, `y_train`, `x_test`, `y_test`, or `images` and `labels`. Images are uint8
            (N, 28, 28), labels integers (N,). An array `writers`, (N,) integers or strings, names the writers of the
            training images, or of all images.

    Raises:
        DatasetError: an array is missing, too large, of another shape or type, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise DatasetError(f"{path} is not an .npz file that NumPy wrote, or it is damaged: {error}") from error


def _read(path: Path, archive: zipfile.ZipFile) -> Dataset:
    present = {name.removesuffix(".npy") for name in archive.namelist()}
    if {"x_train", "y_train", "x_test", "y_test"} <= present:
        train, test = (_examples(path, archive, f"x_{part}", f"y_{part}") for part in ("train", "test"))
        if "writers" in present:
            train = replace(train, writers=_writers(path, archive, len(train)))
        return Dataset(train, test, combined_digest(train, test), str(path), "npz")
    if {"images", "labels"} <= present:
        everything = _examples(path, archive, "images", "labels")
        if "writers" in present:
            everything = replace(everything, writers=_writers(path, archive, len(everything)))
        return split_off_test(everything, str(path), "npz")
    found = ", ".join(sorted(present)[:10]) or "nothing"
    raise DatasetError(f"{path} has the arrays {found}; expected {NAMES}")


def _examples(path: Path, archive: zipfile.ZipFile, images: str, labels: str) -> Examples:
    names = [f"{path}: {name}" for name in (images, labels)]
    require_shape(names[0], *_header(archive, images))
    require_label_shape(names[1], *_header(archive, labels))
    return require_digits(names[0], _array(archive, images), _array(archive, labels))


def _writers(path: Path, archive: zipfile.ZipFile, images: int) -> np.ndarray:
    """Returns the writers as numbers, (images,)."""
    shape, dtype = _header(archive, "writers")
    if shape != (images,) or dtype.kind not in "iuU" or dtype.itemsize > 4 * LONGEST_NAME:
        raise DatasetError(
            f"{path}: writers is {dtype} {shape}, expected integers or short strings ({images},), one per "
            f"{'training ' if 'x_train.npy' in archive.namelist() else ''}image"
        )
    return np.unique(_array(archive, "writers"), return_inverse=True)[1]


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Returns shape and type of an array, without reading its content."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
        else:
            raise ValueError(f"{name} has version {version} of NumPy's format")
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):  # also has the archive's checksum compared
            raise ValueError(f"{name} is longer than its header says")
    return array
