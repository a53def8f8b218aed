"""Makes the files of a version: an ONNX file that is calibrated, certified, evaluated and verified, and its run record."""

import subprocess
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from training.assess import assess
from training.dataset import MNIST_SHA256, Dataset, DatasetError, Examples, hold_out
from training.export import metadata
from training.exported import Exported
from training.verify import Reference, verify

Convert = Callable[[float, dict[str, str]], onnx.ModelProto]  # temperature, metadata
LIBRARIES = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy", "scipy")


def make_version(
    record: dict[str, Any],
    convert: Convert,
    reference: Reference,
    validation: Examples,
    test: Examples,
    directory: Path,
    rounded: bool = False,
) -> dict[str, Any]:
    """Writes an assessed and verified model.onnx to `directory`.

    Args:
        record: what is known before, with the risk.
        convert: makes the model for a temperature, with metadata.
        reference: what the file must answer, see `verify`.
        validation: held-out images, which temperature and thresholds are fitted to.
        test: images for evaluation and verification.
        directory: the version's draft.
        rounded: the file has 8 bits and the reference has not.

    Returns:
        The completed record.

    Raises:
        VerificationError: the file contradicts `reference`.
    """
    onnx_file = directory / "model.onnx"

    def write(temperature: float, properties: dict[str, str]) -> Exported:
        onnx.save(convert(temperature, properties), onnx_file)
        return Exported(onnx_file)

    record = {**record, "libraries": {name: installed(name) for name in LIBRARIES}}
    uncalibrated = write(1.0, {})
    record = {**record, **assess(uncalibrated.uncalibrated_answers, validation, test, record["risk"])}
    exported = write(record["temperature"], metadata(record))
    print(f"export     {onnx_file.stat().st_size:,} bytes of ONNX")
    verification = verify(exported, reference, record["temperature"], test.images, rounded)
    print(f"verify     {verification}")
    return {**record, "verification": asdict(verification)}


def require_its_data(version: Path, record: dict[str, Any], dataset: Dataset) -> None:
    """Raises DatasetError if a version, with this run record, was trained on other data than `dataset`."""
    digest = record["dataset_sha256"]
    if digest != dataset.sha256:
        name = "MNIST" if digest == MNIST_SHA256 else record["dataset"]["name"]
        given = f"{dataset.name} as it is now" if name == dataset.name else dataset.name
        raise DatasetError(f"{version} was trained on {name}, not on {given}; use the --data of its `run`")


def split_again(version: Path, record: dict[str, Any], dataset: Dataset) -> tuple[Examples, Examples]:
    """Returns the images that a version was trained on, without captured ones, and the images that it held out.

    Raises:
        DatasetError: the version was trained on another dataset, or with another split.
    """
    require_its_data(version, record, dataset)
    train, validation = hold_out(dataset, record["validation_images"], record["seed"])
    if record["validation_sha256"] != validation.digest():
        raise DatasetError(f"{version} held out other images of {dataset.name}; use the --writers of its `run`")
    return train[: record["training_images"]], validation


def certified_on(validation: Examples, name: str, *, teacher_saw: bool) -> str | None:
    """Describes the held-out images in words, for model file and card; None without any.

    Args:
        validation: the held-out images.
        name: of their dataset.
        teacher_saw: the version has a teacher that was trained on some of them.
    """
    if not len(validation):
        return None
    if teacher_saw:
        return f"{len(validation):,} training images of {name}, on some of which a teacher of this version was trained"
    if validation.writers is None:
        writers = "their writers may also have written training images"
        return f"{len(validation):,} training images of {name}, drawn at random; {writers}"
    count = len(np.unique(validation.writers))
    return f"{len(validation):,} training images of {name}, by {count:,} writers of whom no image was trained on"


def stamp() -> dict[str, Any]:
    """Returns the code's commit and the current time, for the run record."""
    return {
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """Returns the commit of the running code, marked "-dirty" after local changes; "unknown" outside of a checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # fails in a .venv inside another checkout, which git would describe

        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
