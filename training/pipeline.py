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
import onnx

from training.calibrate import fit_temperature, softmax
from training.dataset import Dataset, hold_out
from training.evaluate import evaluate
from training.export import export, require_exportable
from training.fit import fit, logits
from training.recipes import Recipe
from training.report import model_card
from training.verify import Exported, verify

LIBRARIES = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy")


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
        ExportError: models can't be exported here; said before anything is trained.
        OSError: `model_directory` can't be written to; likewise.
        VerificationError: the ONNX file does not answer as the network does; nothing is published.
    """
    require_exportable()
    model_directory.mkdir(parents=True, exist_ok=True)
    checkpoint = model_directory / f".{recipe.name}-seed{seed}-epochs{epochs}.npz"
    with tempfile.TemporaryDirectory(dir=model_directory, prefix=".") as scratch:
        draft = Path(scratch) / "version"
        draft.mkdir()
        record = _make(recipe, dataset, seed, epochs, draft, checkpoint, logs)
        (draft / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        (draft / "MODEL_CARD.md").write_text(model_card(record, recipe.source))
        published = model_directory / str(_next_version(model_directory))
        draft.rename(published)
    checkpoint.unlink(missing_ok=True)
    return published


def _make(
    recipe: Recipe, dataset: Dataset, seed: int, epochs: int, directory: Path, checkpoint: Path, logs: Path | None
) -> dict[str, Any]:
    """Walks the road from the data to a verified model.onnx in `directory`; returns the run record."""
    created, commit = datetime.now(UTC), _commit()
    train, validation = hold_out(dataset, recipe.validation_images, seed)
    train = train[: recipe.training_images]
    print(f"fit        {recipe.name}, {len(train):,} images, {epochs} epochs, seed {seed}", flush=True)
    fitted = fit(recipe, train, validation, seed, epochs, checkpoint, logs)

    temperature, validated = 1.0, None
    if recipe.validation_images:
        held_out = logits(fitted.network, validation.images)
        temperature = fit_temperature(held_out, validation.labels)
        validated = evaluate(softmax(held_out, temperature), validation.labels)
        print(f"calibrate  temperature {temperature:.4f}; held-out {validated}")

    tested = evaluate(softmax(logits(fitted.network, dataset.test.images), temperature), dataset.test.labels)
    print(f"evaluate   test {tested}")

    record: dict[str, Any] = {
        "recipe": recipe.name,
        "parameters": fitted.network.count_params(),
        "seed": seed,
        "epochs": len(fitted.history["loss"]),
        "epochs_asked": epochs,
        "batch_size": recipe.batch_size,
        "dataset_sha256": dataset.sha256,
        "training_images": len(train),
        "validation_images": len(validation),
        "validation_writers": "unknown" if dataset.writers is None else "other",
        "temperature": temperature,
        "validation": validated and asdict(validated),
        "test": asdict(tested),
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


def _next_version(model_directory: Path) -> int:
    versions = [int(path.name) for path in model_directory.iterdir() if path.name.isdecimal()]
    return max([int(datetime.now(UTC).strftime("%Y%m%d%H%M%S")), *(version + 1 for version in versions)])


def _metadata(record: dict[str, Any]) -> dict[str, str]:
    """What the model file says of itself: strings, lists and tables as JSON."""
    test = record["test"]
    return {
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
