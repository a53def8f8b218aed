"""Runs all stages for one recipe, from images to a verified model version on disk."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import keras
import onnx

from training.captured_images import Captured
from training.certify import RISK
from training.dataset import Dataset, Examples
from training.evaluate import predict_heads
from training.export import ExportError, export, require_exportable
from training.files import require_writable
from training.fit import checkpoint_name, fit
from training.hyperparameters import highest_learning_rate
from training.make_version import certified_on, make_version, split_again, stamp
from training.quantize import quantize
from training.recipes import Recipe
from training.sketch import sketch
from training.teacher import ExportedTeachers
from training.verify import verify_version
from training.version_directory import OF_FILE, VersionError, load_network, publish, read_record, require_replaceable

QUANTISATION_IMAGES = 1000


def run(
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    epochs: int,
    model_directory: Path,
    logs: Path | None = None,
    captured: Captured | None = None,
    risk: float = RISK,
    replace: bool = False,
    teacher: ExportedTeachers | None = None,
) -> Path:
    """Trains, calibrates, certifies, evaluates, exports and verifies `recipe`, then publishes it as a new version.

    An interrupted run leaves a checkpoint in `model_directory`, .RECIPE-seedSEED-epochsEPOCHS.npz, from which the same run
    resumes.

    The version's directory appears only after verification has passed:

        model.onnx       the only file that the service reads.
        model.keras      the Keras network, to export again or to verify.
        run.json         the run record.
        MODEL_CARD.md    the record as a document for operators.

    Captured images extend the training images of `dataset`. Calibration, certification and evaluation use `dataset` alone.

    Args:
        recipe: the recipe to run.
        dataset: training and test images.
        seed: of the split and of the training.
        epochs: passes over the training images, at most.
        model_directory: directory of the model in the repository.
        logs: directory for TensorBoard; None writes no logs.
        captured: images captured in service; None trains on `dataset` alone.
        risk: probability that the error of a certified threshold exceeds its target.
        replace: publishes a version that accepts no digit by default even beside a newest version that accepts some.
        teacher: model whose answers become a part of the targets, for recipes with a mixture.

    Returns:
        The new version's directory.

    Raises:
        DivergedError: the training diverged.
        ExportError: this Keras backend can't export. The checkpoint stays: with TensorFlow, the same run continues with the
            export.
        OSError: `model_directory` or `logs` can't be written to; raised before any training.
        VerificationError: the ONNX file differs from the network; nothing is published.
        VersionError: the version would accept no digit by default, but the newest version accepts some. Without held-out
            images it is raised before any training; otherwise the checkpoint stays, and the same run with `replace`
            publishes.
    """
    for directory in (model_directory, logs):
        if directory:
            require_writable(directory)
    train, validation = recipe.split(dataset, seed)
    if not len(validation) and not replace:
        require_replaceable(model_directory)
    checkpoint = model_directory / f".{checkpoint_name(recipe.name, seed, epochs)}"
    code_and_time = stamp()
    examples, captured_record = train, {}
    if captured:
        examples, repeats = captured.mixed_into(train)
        images, held_out, sha256 = len(captured.train), len(captured.held_out), captured.train.digest()
        captured_record = {"captured": {"images": images, "held_out": held_out, "repeats": repeats, "sha256": sha256}}
        times = "once" if repeats == 1 else f"{repeats} times"
        share = f"each used {times}, {images * repeats / len(examples):.1%} of all images"
        print(f"captured   {images:,} images with a truth, {share}; {held_out:,} more held out for `compare`")
    print(
        f"fit        {recipe.name}, {len(examples):,} images, {epochs} epoch{'s' if epochs > 1 else ''}, seed {seed}",
        flush=True,
    )
    teacher_saw = teacher is not None and len(validation) > 0 and teacher.may_have_seen(validation, dataset)
    if teacher_saw:
        print("warning    a teacher was trained on images that this run holds out; the certificate says so")
    fitted = fit(recipe, examples, validation, seed, epochs, checkpoint, logs, teacher)
    try:
        require_exportable()
    except ExportError as error:
        raise ExportError(
            f"{error}; the trained network is kept in {checkpoint}: run the same command with TensorFlow to export it"
        ) from error
    record = {
        "recipe": recipe.name,
        "source": recipe.source,
        "recipe_file": recipe.file,
        "parameters": fitted.network.count_params(),
        "seed": seed,
        "epochs": len(fitted.history["loss"]),
        "fingerprint": fitted.fingerprint,
        "batch_size": recipe.batch_size,
        "optimiser": type(recipe.optimiser(100)).__name__,
        "learning_rate": highest_learning_rate(recipe.optimiser(100)),
        "augmentation": [type(layer).__name__ for layer in recipe.augmentation(seed)] if recipe.augmentation else [],
        "mixture": asdict(recipe.mixture) if recipe.mixture else None,
        "teacher_sha256": teacher.sha256 if teacher else None,
        "dataset_sha256": dataset.sha256,
        "training_images": len(train),
        "training_sketch": sketch(examples.images),  # of all images, also captured ones; read by `certify`
        "dataset": dataset.record(),
        **captured_record,
        "validation_images": len(validation),
        "validation_sha256": validation.digest(),
        "validation_writers": ("unknown" if dataset.train.writers is None else "other") if len(validation) else None,
        "certified_on": certified_on(validation, dataset.name, teacher_saw=teacher_saw),
        "teacher_saw_held_out": teacher_saw,
        "risk": risk,
        "history": fitted.history,
        "fit_seconds": round(fitted.seconds, 1),
        "backend": fitted.backend,
        "machine": fitted.machine,
        "precision": "fp32",
        **code_and_time,
    }
    published = publish(
        model_directory, lambda draft: _make(record, fitted.network, export, validation, dataset.test, draft), replace
    )
    checkpoint.unlink(missing_ok=True)
    return published


def remake(version: Path, dataset: Dataset, precision: str, replace: bool = False) -> Path:
    """Exports a version's network again, assesses and verifies the result, and publishes it beside the first version.

    In 8 bits, rounding changes the confidences. Temperature and thresholds are therefore fitted to the quantised model's
    answers on the same held-out images, at the version's risk.

    Args:
        version: a float32 version that `run` published.
        dataset: the dataset that it was trained on.
        precision: fp32 or int8.
        replace: as in `run`.

    Returns:
        The new version's directory.

    Raises:
        DatasetError: the version was trained on another dataset, or with another split.
        ExportError: this Keras backend can't export.
        OSError: the directory can't be written to.
        VersionError: `version` is not a float32 version that `run` published, or the result would accept no digit by
            default while the newest version accepts some.
        VerificationError: its model.onnx does not match its network, or 8 bits change the answers too much; nothing is
            published.
    """
    require_exportable()
    version = version.resolve()
    record = read_record(version)
    if record["precision"] != "fp32":
        raise VersionError(f"{version} has precision {record['precision']}; use the fp32 version that it was made from")
    train, validation = split_again(version, record, dataset)
    verify_version(version, dataset.test)  # a replaced model.keras must not be published under this version's record
    network = load_network(version)
    provenance = {"made_from": version.name, "training_commit": record.get("training_commit", record["commit"])}
    sample = train.images[:: max(1, len(train) // QUANTISATION_IMAGES)]  # evenly spaced, to include many writers

    def in_8_bits(network: keras.Sequential, temperature: float, properties: dict[str, str]) -> onnx.ModelProto:
        return quantize(export(network, temperature, properties, channels_last=True), sample)

    kept = {name: value for name, value in record.items() if name not in OF_FILE}
    teacher_saw = record.get("teacher_saw_held_out", False)  # none of the bundled versions' teachers did
    described = {"certified_on": certified_on(validation, dataset.name, teacher_saw=teacher_saw), "precision": precision}
    record = {**kept, **described, **provenance, **stamp()}
    convert = in_8_bits if precision == "int8" else export
    return publish(version.parent, lambda draft: _make(record, network, convert, validation, dataset.test, draft), replace)


def _make(
    record: dict[str, Any],
    network: keras.Sequential,
    convert: Callable[[keras.Sequential, float, dict[str, str]], onnx.ModelProto],
    validation: Examples,
    test: Examples,
    directory: Path,
) -> dict[str, Any]:
    """Writes a verified model.onnx and its network to `directory`, and returns the completed record."""
    rounded, reference = record["precision"] == "int8", partial(predict_heads, network)
    record = make_version(record, partial(convert, network), reference, validation, test, directory, rounded)
    network.save(directory / "model.keras")
    return record
