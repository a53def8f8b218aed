"""The report on a version: measures what training did not, and shows it all on one page that needs nothing else."""

import base64
import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from training import evaluate, figures
from training.calibrate import softmax
from training.dataset import Dataset, Examples
from training.evaluate import Evaluation
from training.model_card import TEMPLATES, model_card, summary
from training.robustness import robustness, second_source
from training.verify import Exported
from training.versions import read_record

SEED = 0  # of the damage, so that versions are measured by the same
WORST = 30  # mistakes shown
SECOND_SOURCE = "scikit-learn's handwritten digits (UCI, 8x8, upsampled and framed as MNIST frames them)"

RECORD = (
    *("recipe", "source", "parameters", "seed", "epochs", "batch_size", "optimiser", "augmentation", "dataset_sha256"),
    *("training_images", "validation_images", "validation_writers", "temperature", "validation", "test", "uncalibrated"),
    *("thresholds", "delta", "history", "fit_seconds", "libraries", "backend", "machine", "commit", "created"),
    *("verification", "precision"),
)


class ReportError(Exception):
    """There is no version to report on, or not all that a report tells of; the message says what is missing."""


def report(version: Path, dataset: Dataset) -> Path:
    """Measures robustness and the second source, and writes both into the run record, the model card and a page.

    Nothing that is there is touched before all that is new lies beside it.

    Args:
        version: a version's directory, as `pipeline.run` leaves it.
        dataset: what it was trained on, with the test images that it was judged on.

    Returns:
        The page, report.html in `version`.

    Raises:
        VersionError: `version` is not a version's directory.
        ReportError: it was made by an older digits-train, or can't be written to.
        VerificationError: its model can't be loaded.
    """
    record, test = _read(version), dataset.test
    exported = Exported(version / "model.onnx")
    logits, probabilities = exported.answers(test.images)
    accuracy = evaluate.evaluate(probabilities, test.labels).accuracy
    if (dataset.sha256, accuracy) != (record["dataset_sha256"], record["test"]["accuracy"]):
        raise ReportError(
            f"{version}: model.onnx reads {accuracy:.4f} of the test images, and by run.json it is "
            f"{record['test']['accuracy']:.4f}: they are not of one run"
        )

    def predict(images: np.ndarray) -> np.ndarray:
        return exported.answers(images)[1]

    print(f"robustness damages the {len(test):,} test images", flush=True)
    record["robustness"] = robustness(predict, test, SEED)
    record["second_source"] = _judged(second_source(), predict)
    _write(
        version,
        {
            "run.json": json.dumps(record, indent=2) + "\n",
            "MODEL_CARD.md": model_card(record),
            "report.html": page(record, test, logits),
        },
    )
    return version / "report.html"


def page(record: dict[str, Any], test: Examples, logits: np.ndarray) -> str:
    """One HTML page with every number of `record` worth seeing, and pictures; it asks for no other file.

    Args:
        record: the run record, with robustness and second source.
        test: the images that it was judged on.
        logits: (N, 10), what the version says of them.
    """
    probabilities = softmax(logits, record["temperature"])
    bands = {"temperature 1": evaluate.reliability(softmax(logits, 1), test.labels)}
    if record["validation_images"]:
        bands[f"temperature {record['temperature']:.3f}"] = evaluate.reliability(probabilities, test.labels)
    told = summary(record)
    marks = {
        target: (found["test_coverage"], found["test_error"])
        for target, found in told["certified"].items()
        if found["test_error"] is not None
    }
    pictures = {
        "curves": figures.curves(record["history"]),
        "confusion": figures.confusion(record["test"]["confusion"]),
        "reliability": figures.reliability(bands),
        "risk_coverage": figures.risk_coverage(*evaluate.risk_coverage(probabilities, test.labels), marks),
        "robustness": figures.robustness(record["robustness"]),
    }
    mistakes = [
        {
            "number": place,
            "digit": int(test.labels[place]),
            "read": int(probabilities[place].argmax()),
            "confidence": float(probabilities[place].max()),
            "address": _png_address(test.images[place]),
        }
        for place in worst_mistakes(probabilities, test.labels, WORST)
    ]
    return TEMPLATES.get_template("report.html").render(
        record=record, pictures={name: _inline(name, drawn) for name, drawn in pictures.items()}, mistakes=mistakes, **told
    )


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """The places of the `count` images that were read wrong with the most confidence, the most confident first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    places: list[int] = wrong[order[:count]].tolist()
    return places


def _judged(second: Examples, predict: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """What the second source says of a version, for its record."""
    judged = evaluate.evaluate(predict(second.images), second.labels)
    return {
        "name": SECOND_SOURCE,
        "images": judged.images,
        "accuracy": judged.accuracy,
        "interval": judged.interval,
        "accuracy_by_digit": judged.recall,
    }


def _read(version: Path) -> dict[str, Any]:
    """The run record, once it is known to have all that a report tells of."""
    record = read_record(version)
    missing = [name for name in RECORD if name not in record]
    missing += [f"test.{field.name}" for field in fields(Evaluation) if field.name not in (record.get("test") or {})]
    if missing:
        raise ReportError(
            f"{version / 'run.json'} lacks {', '.join(missing)}: an older digits-train made it; run the recipe again"
        )
    return record


def _write(directory: Path, contents: dict[str, str]) -> None:
    """Writes files, each aside at first; they take their places when all of them are whole."""
    with ExitStack() as undo:
        asides = {name: directory / f".{name}.part" for name in contents}
        try:
            for name, aside in asides.items():
                undo.callback(aside.unlink, missing_ok=True)
                aside.write_text(contents[name])
            for name, aside in asides.items():
                aside.replace(directory / name)
        except OSError as error:
            raise ReportError(f"cannot write the report into {directory}: {error.strerror}") from error


def _inline(name: str, figure: Figure) -> Markup:
    return Markup(figures.svg(figure, name))  # noqa: S704  # drawn here, of numbers


def _png_address(image: np.ndarray) -> str:
    """An image, (28, 28) uint8, dark on light, as an address that holds all of it."""
    content = io.BytesIO()
    Image.fromarray(255 - image).save(content, "png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
