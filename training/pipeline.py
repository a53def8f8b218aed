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
from training.export import export
from training.fit import fit, logits
from training.recipes import Recipe
from training.report import model_card
from training.verify import verify

LIBRARIES = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy")


def run(recipe: Recipe, dataset: Dataset, seed: int, epochs: int, model_directory: Path) -> Path:
    """Trains, calibrates, evaluates, exports and verifies `recipe`, then publishes it as a new version.

    The version is the UTC time of its making, YYYYMMDDhhmmss: it grows, and no two sites make the same one. Its directory
    appears in `model_directory` whole, and only when verification has passed:

        model.onnx       what the service reads, and all it reads
        model.keras      the network behind it, to export again or to verify
        run.json         the run record
        MODEL_CARD.md    the record, for people

    Returns:
        The new version's directory.

    Raises:
        VerificationError: the ONNX file does not answer as the network does; nothing is published.
    """
    created, commit = datetime.now(UTC), _commit()
    train, validation = hold_out(dataset.train, recipe.validation, seed)
    print(f"fit        {recipe.name}, {len(train):,} images, {epochs} epochs, seed {seed}", flush=True)
    fitted = fit(recipe, train, validation, seed, epochs)

    temperature = 1.0
    if recipe.validation:
        temperature = fit_temperature(logits(fitted.network, validation.images), validation.labels)
    print(f"calibrate  temperature {temperature:.4f} from {len(validation):,} held-out images")

    evaluation = evaluate(softmax(logits(fitted.network, dataset.test.images), temperature), dataset.test.labels)
    print(f"evaluate   {evaluation}")

    record: dict[str, Any] = {
        "recipe": recipe.name,
        "parameters": fitted.network.count_params(),
        "seed": seed,
        "epochs": epochs,
        "batch_size": recipe.batch_size,
        "dataset_sha256": dataset.sha256,
        "training_images": len(train),
        "validation_images": len(validation),
        "temperature": temperature,
        "test": asdict(evaluation),
        "history": fitted.history,
        "fit_seconds": round(fitted.seconds, 1),
        "libraries": {name: installed(name) for name in LIBRARIES},
        "backend": keras.backend.backend(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "commit": commit,
        "created": created.isoformat(timespec="seconds"),
    }
    model_directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model_directory, prefix=".") as scratch:
        draft = Path(scratch) / "version"
        draft.mkdir()
        onnx.save(export(fitted.network, temperature, _metadata(record)), draft / "model.onnx")
        print(f"export     {(draft / 'model.onnx').stat().st_size:,} bytes of ONNX")
        fitted.network.save(draft / "model.keras")
        verification = verify(draft / "model.onnx", fitted.network, temperature, dataset.test.images)
        print(f"verify     {verification}")
        record["verification"] = asdict(verification)
        (draft / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        (draft / "MODEL_CARD.md").write_text(model_card(record, recipe.source))
        published = model_directory / created.strftime("%Y%m%d%H%M%S")
        draft.rename(published)
    return published


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
    """The commit of the code that is running, marked when it had changes; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
