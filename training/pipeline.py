"""The whole road: one recipe, from images to a verified model version on disk."""

import json
import subprocess
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
from training.captured_images import Captured
from training.dataset import Dataset, DatasetError, Examples, hold_out
from training.drift_reference import drift_reference
from training.evaluate import ERRORS, FIELD_ERRORS, FIELD_LENGTHS, accept, evaluate, judge, judge_fields
from training.export import ExportError, export, require_exportable
from training.files import require_writable
from training.fit import checkpoint_name, fit
from training.quantize import quantize
from training.recipes import Recipe
from training.verify import Exported, verify, verify_version
from training.version_directory import VersionError, load_network, publish, read_record

DELTA = 0.001  # risk that a certified threshold lets through more errors than it says
QUANTISATION_IMAGES = 1000
POSTCODE = 5  # digits of the fields that are told of
Convert = Callable[[keras.Sequential, float, dict[str, str]], onnx.ModelProto]  # network, temperature, metadata
LIBRARIES = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "numpy", "scipy")


def run(
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    epochs: int,
    model_directory: Path,
    logs: Path | None = None,
    captured: Captured | None = None,
) -> Path:
    """Trains, calibrates, evaluates, exports and verifies `recipe`, then publishes it as a new version.

    A run that was cut off left a checkpoint in `model_directory`, .RECIPE-seedSEED-epochsEPOCHS.npz: the same run goes on
    from it.

    The version's directory appears only when verification has passed:

        model.onnx       what the service reads, and all it reads
        model.keras      the network behind it, to export again or to verify
        run.json         the run record
        MODEL_CARD.md    the record, for people

    Captured images, where there are any, are learnt from besides those of `dataset`; what a version is calibrated, certified
    and judged by stays the same.

    Returns:
        The new version's directory.

    Raises:
        ExportError: models can't be exported where Keras runs on this backend. The checkpoint is left: the same run, where
            they can, goes on from it with the export.
        OSError: `model_directory` or `logs` can't be written to; said before anything is trained.
        VerificationError: the ONNX file does not answer as the network does; nothing is published.
    """
    for directory in (model_directory, logs):
        if directory:
            require_writable(directory)
    train, validation = recipe.split(dataset, seed)
    checkpoint = model_directory / f".{checkpoint_name(recipe.name, seed, epochs)}"
    origin = _origin()
    learnt, mixed = train, {}
    if captured:
        learnt, repeats = captured.mixed_into(train)
        images, held_out, sha256 = len(captured.train), len(captured.held_out), captured.train.digest()
        mixed = {"captured": {"images": images, "held_out": held_out, "repeats": repeats, "sha256": sha256}}
        times = "once" if repeats == 1 else f"{repeats} times"
        about = f"each taken {times}, {images * repeats / len(learnt):.1%} of all"
        print(f"captured   {images:,} images with their truth, {about}; {held_out:,} more held out for `compare`")
    print(
        f"fit        {recipe.name}, {len(learnt):,} images, {epochs} epoch{'s' if epochs > 1 else ''}, seed {seed}",
        flush=True,
    )
    fitted = fit(recipe, learnt, validation, seed, epochs, checkpoint, logs)
    try:
        require_exportable()
    except ExportError as error:
        raise ExportError(f"{error}; {checkpoint} keeps what was trained: give the same command where it can be") from error
    record = {
        "recipe": recipe.name,
        "source": recipe.source,
        "parameters": fitted.network.count_params(),
        "seed": seed,
        "epochs": len(fitted.history["loss"]),
        "fingerprint": fitted.fingerprint,
        "batch_size": recipe.batch_size,
        "optimiser": type(recipe.optimiser(1)).__name__,
        "augmentation": [type(layer).__name__ for layer in recipe.augmentation(seed)] if recipe.augmentation else [],
        "dataset_sha256": dataset.sha256,
        "training_images": len(train),
        **mixed,
        "validation_images": len(validation),
        "validation_sha256": validation.digest(),
        "validation_writers": ("unknown" if dataset.writers is None else "other") if len(validation) else None,
        "history": fitted.history,
        "fit_seconds": round(fitted.seconds, 1),
        "backend": fitted.backend,
        "machine": fitted.machine,
        "precision": "fp32",
        **origin,
    }
    published = publish(
        model_directory, lambda draft: _make(record, fitted.network, export, validation, dataset.test, draft)
    )
    checkpoint.unlink(missing_ok=True)
    return published


def remake(version: Path, dataset: Dataset, precision: str) -> Path:
    """Exports a version's network again, judges, certifies and verifies it anew, and publishes it beside the first.

    In 8 bits, rounding moves the confidences: temperature and thresholds are fitted to what the quantised model says of the
    same held-out images.

    Args:
        version: a float32 version that `run` made.
        dataset: what it was trained on.
        precision: fp32 or int8.

    Returns:
        The new version's directory.

    Raises:
        DatasetError: `dataset` is not what the version was trained on, or other images would be held out of it.
        ExportError: models can't be exported where Keras runs on this backend.
        OSError: the directory can't be written to.
        VersionError: `version` is no float32 version that `run` made.
        VerificationError: its model.onnx was not made from its network, or 8 bits don't do it justice; nothing is published.
    """
    require_exportable()
    version = version.resolve()
    record = read_record(version)
    if record.get("precision") != "fp32":
        raise VersionError(f"{version} is of precision {record.get('precision')}: take the fp32 version that it came from")
    verify_version(version, dataset.test)  # or another network would go by its name
    network = load_network(version)
    try:
        train, validation = hold_out(dataset, record["validation_images"], record["seed"])
        same = (record["dataset_sha256"], record["validation_sha256"]) == (dataset.sha256, validation.digest())
        learnt = train.images[: record["training_images"]]
        trained = {"made_from": version.name, "training_commit": record.get("training_commit", record["commit"])}
    except (KeyError, TypeError, ValueError) as error:
        raise VersionError(f"{version} is no version that this `digits-train run` made: {error}") from error
    if not same:
        raise DatasetError(f"{version} was trained on other data, or held out other images: give what `run` was given")
    sample = learnt[:: max(1, len(learnt) // QUANTISATION_IMAGES)]  # spread out: writers may lie together

    def in_8_bits(network: keras.Sequential, temperature: float, metadata: dict[str, str]) -> onnx.ModelProto:
        return quantize(export(network, temperature, metadata), sample)

    measured = ("robustness", "second_source", "verification")
    kept = {name: value for name, value in record.items() if name not in measured}
    record = {**kept, "precision": precision, **trained, **_origin()}
    convert = in_8_bits if precision == "int8" else export
    return publish(version.parent, lambda draft: _make(record, network, convert, validation, dataset.test, draft))


def _make(
    record: dict[str, Any],
    network: keras.Sequential,
    convert: Convert,
    validation: Examples,
    test: Examples,
    directory: Path,
) -> dict[str, Any]:
    """Leaves a judged and verified model.onnx, and its network, in `directory`; completes the record."""
    onnx_file = directory / "model.onnx"

    def leave(temperature: float, metadata: dict[str, str]) -> Exported:
        onnx.save(convert(network, temperature, metadata), onnx_file)
        return Exported(onnx_file)

    record = {**record, "libraries": {name: installed(name) for name in LIBRARIES}}
    trial = leave(1.0, {})
    record = {**record, **_judge(lambda images: trial.answers(images)[0], validation, test)}
    exported = leave(record["temperature"], _metadata(record))
    print(f"export     {onnx_file.stat().st_size:,} bytes of ONNX")
    network.save(directory / "model.keras")
    verification = verify(exported, network, record["temperature"], test.images)
    print(f"verify     {verification}")
    return {**record, "verification": asdict(verification)}


def _origin() -> dict[str, Any]:
    """By which code and when a version is made."""
    return {
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _judge(answer: Callable[[np.ndarray], np.ndarray], validation: Examples, test: Examples) -> dict[str, Any]:
    """The part of a record that tells how good a model's confidences and digits are.

    Args:
        answer: logits, (N, 10) float32, for images, (N, 28, 28) uint8.
        validation: what the temperature and the thresholds are fitted to; without images, there are none.
        test: what all is judged by, once.
    """
    temperature, validated = 1.0, None
    certified: dict[str, Threshold | None] = {}
    certified_fields: dict[int, dict[float, Threshold | None]] = {}
    reference = None
    if len(validation):
        held_out = answer(validation.images)
        temperature = fit_temperature(held_out, validation.labels)
        calibrated = softmax(held_out, temperature)
        validated = evaluate(calibrated, validation.labels)
        reference = drift_reference(validation.images, calibrated)
        print(f"calibrate  temperature {temperature:.4f}; held-out {validated}")
        certified = {str(error): certify(*judge(calibrated, validation.labels), error, DELTA) for error in ERRORS}
        # Held-out images lie in the order of their writers, where those are known: a field is in one hand, as on a letter.
        certified_fields = {
            length: {
                error: certify(*judge_fields(calibrated, validation.labels, length), error, DELTA) for error in FIELD_ERRORS
            }
            for length in FIELD_LENGTHS
        }

    test_logits = answer(test.images)
    probabilities = softmax(test_logits, temperature)
    tested = evaluate(probabilities, test.labels)
    uncalibrated = evaluate(softmax(test_logits, 1), test.labels)
    print(f"evaluate   test {tested}")
    record: dict[str, Any] = {
        "temperature": temperature,
        "validation": validated and asdict(validated),
        "test": asdict(tested),
        "uncalibrated": {
            "negative_log_likelihood": uncalibrated.negative_log_likelihood,
            "calibration_error": uncalibrated.calibration_error,
        },
        "thresholds": {error: _tested(found, *judge(probabilities, test.labels)) for error, found in certified.items()},
        "fields": {
            str(length): _fields(found, *judge_fields(probabilities, test.labels, length))
            for length, found in certified_fields.items()
        },
        "delta": DELTA,
        "drift_reference": reference,
    }
    _tell(record["thresholds"], "digits")
    if record["fields"]:
        _tell(record["fields"][str(POSTCODE)]["thresholds"], f"fields of {POSTCODE}")
    return record


def _fields(certified: dict[float, Threshold | None], confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """The record of the fields of one length: how many of the test images' are right, and the certified thresholds."""
    return {
        "test_fields": len(right),
        "test_accuracy": float(right.mean()),
        "test_confidence": float(confidence.mean()),
        "thresholds": {str(error): _tested(found, confidence, right) for error, found in certified.items()},
    }


def _tested(certified: Threshold | None, confidence: np.ndarray, right: np.ndarray) -> dict[str, Any] | None:
    """The record of a certified threshold beside what it does on the test images; None where there is none."""
    if certified is None:
        return None
    found = accept(confidence, right, certified.threshold)
    return asdict(certified) | {f"test_{name}": value for name, value in asdict(found).items()}


def _tell(certified: dict[str, Any], what: str) -> None:
    """Says what came of certifying, from the record of the thresholds by error."""
    for error, found in certified.items():
        if found is None:
            print(f"certify    {what}, at most {float(error):.1%} errors: no threshold can be shown to do that")
            continue
        print(
            f"certify    {what}, at most {float(error):.1%} errors: accept confidence {found['threshold']:.4f} and above, "
            f"{found['coverage']:.2%} of those held out; of test {found['test_coverage']:.2%}, {found['test_errors']} wrong"
        )


def _metadata(record: dict[str, Any]) -> dict[str, str]:
    """What the model file says of itself: strings, lists and tables as JSON."""
    test = record["test"]
    of_held_out = {
        "thresholds": _stated(record["thresholds"]),
        "field_thresholds": {length: _stated(fields["thresholds"]) for length, fields in record["fields"].items()},
        "drift_reference": record["drift_reference"],
    }
    return {
        **({name: json.dumps(found) for name, found in of_held_out.items()} if record["validation_images"] else {}),
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


def _stated(thresholds: dict[str, Any]) -> dict[str, Any]:
    """Those that there are, with what the server needs of each, and what it may tell."""
    return {error: {name: found[name] for name in ("threshold", "coverage")} for error, found in thresholds.items() if found}


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
