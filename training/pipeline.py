"""The whole road: one recipe, from images to a verified model version on disk."""

import json
import os
import platform
import subprocess
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx

from training.calibrate import Threshold, certify, fit_temperature, softmax
from training.dataset import Dataset, Examples, hold_out
from training.evaluate import ERRORS, accept, evaluate, judge
from training.export import export
from training.fit import fit, logits
from training.model_card import model_card
from training.recipes import Recipe
from training.verify import Exported, verify

DELTA = 0.001  # risk that a certified threshold lets through more errors than it says
LIBRARIES = ("keras", keras.backend.backend(), "onnx", "onnxruntime", "numpy", "scipy")


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
        ExportError: the network has a layer that can't be exported.
        OSError: `model_directory` can't be written to; said before anything is trained.
        VerificationError: the ONNX file does not answer as the network does; nothing is published.
    """
    model_directory.mkdir(parents=True, exist_ok=True)
    checkpoint = model_directory / f".{recipe.name}-seed{seed}-epochs{epochs}.npz"
    with tempfile.TemporaryDirectory(dir=model_directory, prefix=".") as scratch:
        draft = Path(scratch) / "version"
        draft.mkdir()
        record = _make(recipe, dataset, seed, epochs, draft, checkpoint, logs)
        (draft / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        (draft / "MODEL_CARD.md").write_text(model_card(record))
        published = model_directory / str(_next_version(model_directory))
        draft.rename(published)
    checkpoint.unlink(missing_ok=True)
    return published


def _make(
    recipe: Recipe, dataset: Dataset, seed: int, epochs: int, directory: Path, checkpoint: Path, logs: Path | None
) -> dict[str, Any]:
    """Walks the road from the data to a verified model.onnx in `directory`; returns the run record."""
    created, commit = datetime.now(UTC), _commit()
    train, validation = split(recipe, dataset, seed)
    print(f"fit        {recipe.name}, {len(train):,} images, {epochs} epochs, seed {seed}", flush=True)
    fitted = fit(recipe, train, validation, seed, epochs, checkpoint, logs)

    temperature, validated = 1.0, None
    certified: dict[str, Threshold | None] = {}
    if recipe.validation_images:
        held_out = logits(fitted.network, validation.images)
        temperature = fit_temperature(held_out, validation.labels)
        calibrated = softmax(held_out, temperature)
        validated = evaluate(calibrated, validation.labels)
        print(f"calibrate  temperature {temperature:.4f}; held-out {validated}")
        certified = {str(error): certify(*judge(calibrated, validation.labels), error, DELTA) for error in ERRORS}

    test_logits = logits(fitted.network, dataset.test.images)
    probabilities = softmax(test_logits, temperature)
    tested = evaluate(probabilities, dataset.test.labels)
    uncalibrated = evaluate(softmax(test_logits, 1), dataset.test.labels)
    print(f"evaluate   test {tested}")
    thresholds = {error: _tested(error, found, probabilities, dataset.test.labels) for error, found in certified.items()}

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
        "validation_writers": "unknown" if dataset.writers is None else "other",
        "temperature": temperature,
        "validation": validated and asdict(validated),
        "test": asdict(tested),
        "uncalibrated": {
            "negative_log_likelihood": uncalibrated.negative_log_likelihood,
            "calibration_error": uncalibrated.calibration_error,
        },
        "thresholds": thresholds,
        "delta": DELTA,
        "history": fitted.history,
        "fit_seconds": round(fitted.seconds, 1),
        "libraries": {name: installed(name) for name in LIBRARIES},
        "backend": keras.backend.backend(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "commit": commit,
        "created": created.isoformat(timespec="seconds"),
    }
    onnx_file = directory / "model.onnx"
    onnx.save(export(fitted.network, temperature, _metadata(record)), onnx_file)
    print(f"export     {onnx_file.stat().st_size:,} bytes of ONNX")
    fitted.network.save(directory / "model.keras")
    verification = verify(Exported(onnx_file), fitted.network, temperature, dataset.test.images)
    print(f"verify     {verification}")
    return {**record, "verification": asdict(verification)}


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
        **{name: str(record[name]) for name in ("recipe", "parameters", "seed", "dataset_sha256", "temperature")},
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
