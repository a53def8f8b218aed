"""Publishes a cascade: two versions joined into one model, calibrated and certified anew."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from training.cascade.graph import join
from training.cascade.stages import Stages
from training.certify import RISK
from training.dataset import Dataset, DatasetError
from training.evaluate import score
from training.exported import Exported
from training.files import require_writable
from training.make_version import certified_on, make_version, split_again, stamp
from training.version_directory import VersionError, publish, read_record

_SHARED = ("precision", "seed", "dataset_sha256", "training_images", "validation_images", "validation_sha256")
_COPIED = ("dataset", "validation_writers")


def combine(
    first: Path,
    second: Path,
    dataset: Dataset,
    name: str,
    sent_on: float,
    risk: float = RISK,
    replace: bool = False,
) -> Path:
    """Joins two versions and publishes the result as a new version of the model `name`, in the repository of both.

    The second stage reads the images of which the first is less sure than it is of `sent_on` of the held-out digits.

    Args:
        first: the fast version, of contract 2.
        second: the version for unsure images, of contract 1 or 2, of the same precision and trained on the same images.
        dataset: the dataset that both were trained on.
        name: of the model; its directory lies beside those of the stages' models.
        sent_on: share of the held-out digits that the second stage reads.
        risk: probability that the error of a certified threshold exceeds its target.
        replace: as in `pipeline.run`.

    Returns:
        The new version's directory.

    Raises:
        DatasetError: the versions were trained on another dataset, with other splits, or without held-out images.
        OSError: the version can't be written.
        VersionError: the versions can't be joined, or see `replace`.
        VerificationError: the joined file contradicts its stages; nothing is published.
    """
    versions = first.resolve(), second.resolve()
    fast, slow = records = [_stage_record(version) for version in versions]
    if "whole" not in fast:
        raise VersionError(f"{first} has no output `whole`; take a first stage of a recipe that has one, such as folded")
    repository = versions[0].parent.parent
    if versions[1].parent.parent != repository:
        raise VersionError(f"{first} and {second} lie in different model repositories; copy one of them beside the other")
    for entry in _SHARED:
        if fast[entry] != slow[entry]:
            raise VersionError(f"the versions differ in {entry}: {fast[entry]} and {slow[entry]}")
    _, validation = split_again(versions[0], fast, dataset)
    if not len(validation):
        raise DatasetError(f"{first} held no images out, on which a cascade is certified; train with --hold-out 10000")
    directory = repository / name
    require_writable(directory)
    stages = Exported(versions[0] / "model.onnx"), Exported(versions[1] / "model.onnx")
    confidence, _ = score(stages[0].answers(validation.images)[1], validation.labels)
    threshold = float(np.quantile(confidence, sent_on))
    joined = Stages(*stages, threshold)
    sent = {
        part: float(joined.unsure(images).mean())
        for part, images in (("held_out", validation.images), ("test", dataset.test.images))
    }
    print(
        f"cascade    the second stage reads images below a confidence of {threshold:.4f}: "
        f"{sent['held_out']:.2%} of the held-out digits, {sent['test']:.2%} of the test images"
    )
    teacher_saw = any(stage.get("teacher_saw_held_out", False) for stage in records)
    record = {
        **{entry: fast[entry] for entry in (*_SHARED, *_COPIED)},
        "recipe": f"{fast['recipe']}-{slow['recipe']}",
        "source": "ours: a cascade of two networks",
        "parameters": fast["parameters"] + slow["parameters"],
        "training_sketch": sorted({checksum for stage in records for checksum in stage.get("training_sketch", [])}),
        "cascade": {
            "threshold": threshold,
            "sent_on": sent,
            "stages": [
                {
                    "model": version.parent.name,
                    "version": version.name,
                    "sha256": stage.sha256,
                    "recipe": record["recipe"],
                    "whole": "whole" in record,
                }
                for version, stage, record in zip(versions, stages, records, strict=True)
            ],
        },
        "certified_on": certified_on(validation, dataset.name, teacher_saw=teacher_saw),
        "teacher_saw_held_out": teacher_saw,
        "risk": risk,
        **stamp(),
    }
    models = onnx.load(stages[0].path), onnx.load(stages[1].path)

    def convert(temperature: float, properties: dict[str, str]) -> onnx.ModelProto:
        return join(*models, threshold, temperature, properties)

    return publish(directory, lambda draft: make_version(record, convert, joined, validation, dataset.test, draft), replace)


def _stage_record(version: Path) -> dict[str, Any]:
    """Reads the run record of a version that can be a stage.

    Raises:
        VersionError: it is a cascade itself, or from another release.
    """
    record = read_record(version)
    if "cascade" in record:
        raise VersionError(f"{version} is a cascade itself")
    return record
