"""The whole road: one recipe, from images to a verified model version on disk."""

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx

from training.calibrate import Threshold, certify, fit_temperature, softmax
from training.dataset import Dataset, DatasetError, Examples, hold_out
from training.evaluate import ERRORS, accept, evaluate, judge
from training.export import export, require_exportable
from training.fit import fit, logits
from training.model_card import model_card
from training.quantize import quantize
from training.recipes import Recipe
from training.verify import Exported, VerificationError, verify

DELTA = 0.001  # risk that a certified threshold lets through more errors than it says
QUANTISATION_IMAGES = 1000
LIBRARIES = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy", "scipy")


def run(recipe: Recipe, dataset: Dataset, seed: int, epochs: int, model_directory: Path, logs: Path | None = None) -> Path:
    """Trains, calibrates, evaluates, exports and verifies `recipe`, then publishes it as a new version.

    A run that was cut off left a checkpoint, `.RECIPE-SEED-EPOCHS.npz`, in `model_directory`: the same run goes on from it.

    The version is the UTC time of its publication, YYYYMMDDhhmmss, or one more than the highest that there is: it always
    grows. Its directory appears in `model_directory` whole, and only when verification has passed:

        model.onnx       what the service reads, and all it reads
        model.keras      the network behind it, to export again or to verify
        run.json         the run record
        MODEL_CARD.md    the record, for people

    Returns:
        The new version's directory.

    Raises:
        ExportError: models can't be exported where Keras runs on this backend. The checkpoint is left: the same run, where
            they can, goes on from it with the export.
        OSError: `model_directory` can't be written to; said before anything is trained.
        VerificationError: the ONNX file does not answer as the network does; nothing is published.
    """
    model_directory.mkdir(parents=True, exist_ok=True)
    checkpoint = model_directory / f".{recipe.name}-seed{seed}-epochs{epochs}.npz"
    published = _publish(model_directory, lambda draft: _make(recipe, dataset, seed, epochs, draft, checkpoint, logs))
    checkpoint.unlink(missing_ok=True)
    return published


def run_int8(version: Path, dataset: Dataset) -> Path:
    """Quantises a version to 8 bits, judges and verifies the result, then publishes it as a new version beside the first.

    Rounding moves the confidences: temperature and thresholds are fitted anew, to what the quantised model says of the same
    held-out images.

    Returns:
        The new version's directory.

    Raises:
        ExportError: models can't be exported here.
        DatasetError: `dataset` is not what the version was trained on, or its writers are not known as they were then.
        OSError: the directory can't be written to.
        VerificationError: `version` is no float32 version that `run` made, or 8 bits don't do it justice; nothing is
            published.
    """
    require_exportable()
    version = version.resolve()
    try:
        record = json.loads((version / "run.json").read_text())
        network = keras.models.load_model(version / "model.keras")
        precision, sha256, writers = (record[name] for name in ("precision", "dataset_sha256", "validation_writers"))
    except (OSError, ValueError, KeyError) as error:
        raise VerificationError(f"{version} is no version that this `digits-train run` made: {error}") from error
    if precision != "fp32":
        raise VerificationError(
            f"{version} is of precision {precision} already: quantise the fp32 version that it came from"
        )
    if (sha256, writers) != (dataset.sha256, _writers(dataset)):
        raise DatasetError(f"{version} was trained on other data, or held out in another way: give what `run` was given")
    return _publish(version.parent, lambda draft: _make_int8(record, network, dataset, draft))


def _publish(model_directory: Path, make: Callable[[Path], dict[str, Any]]) -> Path:
    """Has `make` fill an empty directory and give its run record, then moves all that to the next version's place."""
    with tempfile.TemporaryDirectory(dir=model_directory, prefix=".") as scratch:
        draft = Path(scratch) / "version"
        draft.mkdir()
        record = make(draft)
        (draft / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        (draft / "MODEL_CARD.md").write_text(model_card(record))
        published = model_directory / str(_next_version(model_directory))
        draft.rename(published)
    return published


def _make(
    recipe: Recipe, dataset: Dataset, seed: int, epochs: int, directory: Path, checkpoint: Path, logs: Path | None
) -> dict[str, Any]:
    """Walks the road from the data to a verified model.onnx in `directory`; returns the run record."""
    created, commit = datetime.now(UTC), _commit()
    train, validation = split(recipe, dataset, seed)
    print(f"fit        {recipe.name}, {len(train):,} images, {epochs} epochs, seed {seed}", flush=True)
    fitted = fit(recipe, train, validation, seed, epochs, checkpoint, logs)
    require_exportable()

    judged = _judge(lambda images: logits(fitted.network, images), validation, dataset.test)
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "source": recipe.source,
        "parameters": fitted.network.count_params(),
        "seed": seed,
        "epochs": len(fitted.history["loss"]),
        "epochs_asked": epochs,
        "batch_size": recipe.batch_size,
        "optimiser": type(recipe.optimiser(1)).__name__,
        "augmentation": [type(layer).__name__ for layer in recipe.augmentation(seed)] if recipe.augmentation else [],
        "dataset_sha256": dataset.sha256,
        "training_images": len(train),
        "validation_images": len(validation),
        "validation_writers": _writers(dataset),
        **judged,
        "history": fitted.history,
        "fit_seconds": round(fitted.seconds, 1),
        "backend": fitted.backend,
        "precision": "fp32",
        "libraries": {name: installed(name) for name in LIBRARIES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "commit": commit,
        "created": created.isoformat(timespec="seconds"),
    }
    onnx_file = directory / "model.onnx"
    onnx.save(export(fitted.network, record["temperature"], _metadata(record)), onnx_file)
    print(f"export     {onnx_file.stat().st_size:,} bytes of ONNX")
    fitted.network.save(directory / "model.keras")
    verification = verify(Exported(onnx_file), fitted.network, record["temperature"], dataset.test.images)
    print(f"verify     {verification}")
    return {**record, "verification": asdict(verification)}


def _make_int8(record: dict[str, Any], network: keras.Sequential, dataset: Dataset, directory: Path) -> dict[str, Any]:
    """Leaves a verified model.onnx in 8 bits in `directory`; returns its run record, made of that of the float32 version."""
    created, commit = datetime.now(UTC), _commit()
    train, validation = hold_out(dataset, record["validation_images"], record["seed"])
    train = train[: record["training_images"]]
    sample = train.images[:: max(1, len(train) // QUANTISATION_IMAGES)]  # spread out: writers may lie together
    onnx_file = directory / "model.onnx"

    def leave(temperature: float, metadata: dict[str, str]) -> Exported:
        onnx.save(quantize(export(network, temperature, metadata), sample), onnx_file)
        return Exported(onnx_file)

    trial = leave(1.0, {})
    print(f"quantize   {onnx_file.stat().st_size:,} bytes of ONNX, by {len(sample):,} training images", flush=True)
    judged = _judge(lambda images: trial.answers(images, 128)[0], validation, dataset.test)
    measured_in_fp32 = ("robustness", "second_source", "verification")
    record = {name: value for name, value in record.items() if name not in measured_in_fp32}
    record |= judged | {"precision": "int8", "commit": commit, "created": created.isoformat(timespec="seconds")}
    exported = leave(record["temperature"], _metadata(record))
    network.save(directory / "model.keras")
    verification = verify(exported, network, record["temperature"], dataset.test.images)
    print(f"verify     {verification}")
    return {**record, "verification": asdict(verification)}


def _judge(answer: Callable[[np.ndarray], np.ndarray], validation: Examples, test: Examples) -> dict[str, Any]:
    """The part of a record that tells how good a model's confidences and digits are.

    Args:
        answer: logits, (N, 10) float32, for images, (N, 28, 28) uint8.
        validation: what the temperature and the thresholds are fitted to; without images, there are none.
        test: what all is judged by, once.
    """
    temperature, validated = 1.0, None
    certified: dict[str, Threshold | None] = {}
    if len(validation):
        held_out = answer(validation.images)
        temperature = fit_temperature(held_out, validation.labels)
        calibrated = softmax(held_out, temperature)
        validated = evaluate(calibrated, validation.labels)
        print(f"calibrate  temperature {temperature:.4f}; held-out {validated}")
        certified = {str(error): certify(*judge(calibrated, validation.labels), error, DELTA) for error in ERRORS}

    test_logits = answer(test.images)
    probabilities = softmax(test_logits, temperature)
    tested = evaluate(probabilities, test.labels)
    uncalibrated = evaluate(softmax(test_logits, 1), test.labels)
    print(f"evaluate   test {tested}")
    return {
        "temperature": temperature,
        "validation": validated and asdict(validated),
        "test": asdict(tested),
        "uncalibrated": {
            "negative_log_likelihood": uncalibrated.negative_log_likelihood,
            "calibration_error": uncalibrated.calibration_error,
        },
        "thresholds": {error: _tested(error, found, probabilities, test.labels) for error, found in certified.items()},
        "delta": DELTA,
    }


def _writers(dataset: Dataset) -> str:
    """Whether the held-out images are by other writers."""
    return "unknown" if dataset.writers is None else "other"


def _tested(error: str, certified: Threshold | None, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any] | None:
    """The record of a certified threshold beside what it does on the test images; None where there is none."""
    if certified is None:
        print(f"certify    at most {float(error):.1%} errors: no threshold can be shown to do that")
        return None
    found = accept(probabilities, labels, certified.threshold)
    print(
        f"certify    at most {float(error):.1%} errors: accept confidence {certified.threshold:.4f} and above, "
        f"{certified.coverage:.2%} of held-out images; of test {found.coverage:.2%}, {found.errors} of them wrong"
    )
    return asdict(certified) | {f"test_{name}": value for name, value in asdict(found).items()}


def split(recipe: Recipe, dataset: Dataset, seed: int) -> tuple[Examples, Examples]:
    """The images that `recipe` learns from, and those that it holds out."""
    train, validation = hold_out(dataset, recipe.validation_images, seed)
    return train[: recipe.training_images], validation


def find_version(directory: Path, recipe: Recipe, dataset: Dataset, seed: int, epochs: int) -> Path | None:
    """The newest version, anywhere below `directory`, that `run` would make again; None where there is none."""
    wanted = {"recipe": recipe.name, "seed": seed, "epochs_asked": epochs, "dataset_sha256": dataset.sha256}
    found = []
    for file in directory.rglob("run.json"):
        try:
            record = json.loads(file.read_text())
        except ValueError:
            continue  # another program's
        if wanted.items() <= record.items():
            found.append(file.parent)
    return max(found, key=lambda version: version.name, default=None)


def _next_version(model_directory: Path) -> int:
    versions = [int(path.name) for path in model_directory.iterdir() if path.name.isdecimal()]
    return max([int(datetime.now(UTC).strftime("%Y%m%d%H%M%S")), *(version + 1 for version in versions)])


def _metadata(record: dict[str, Any]) -> dict[str, str]:
    """What the model file says of itself: strings, lists and tables as JSON."""
    test = record["test"]
    thresholds = {
        error: {name: found[name] for name in ("threshold", "coverage")}
        for error, found in record["thresholds"].items()
        if found
    }
    return {
        **({"thresholds": json.dumps(thresholds)} if record["validation_images"] else {}),
        "labels": json.dumps([str(digit) for digit in range(10)]),
        "test_images": str(test["images"]),
        "test_accuracy": str(test["accuracy"]),
        "test_accuracy_interval": json.dumps(test["interval"]),
        "libraries": json.dumps(record["libraries"]),
        **{
            name: str(record[name])
            for name in ("recipe", "parameters", "seed", "dataset_sha256", "temperature", "precision")
        },
        **{name: record[name] for name in ("commit", "created")},
    }


def _commit() -> str:
    """The commit of the code that is running, marked when it had changes; "unknown" when it is no checkout of its own."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # in a .venv inside a checkout, git would tell of that one
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
