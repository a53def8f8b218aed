"""The report on a version: measures what training did not, and shows it all on one page that needs nothing else."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import UndefinedError
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from training import evaluate, figures
from training.calibrate import softmax
from training.dataset import Dataset, Examples
from training.model_card import TEMPLATES, model_card, summary
from training.robustness import robustness, second_source
from training.verify import Exported
from training.version_directory import read_record

SEED = 0  # of the damage, so that versions are measured by the same
WORST = 30  # mistakes shown
SECOND_SOURCE = "scikit-learn's handwritten digits (UCI, 8x8, upsampled and framed as MNIST frames them)"


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
    record, test = read_record(version), dataset.test
    with _record_is_whole(version):
        model_card(record)  # before minutes are spent
        stated = (record["dataset_sha256"], record["test"]["accuracy"])
    exported = Exported(version / "model.onnx")
    logits, probabilities = exported.answers(test.images)
    accuracy = evaluate.evaluate(probabilities, test.labels).accuracy
    if (dataset.sha256, accuracy) != stated:
        raise ReportError(
            f"{version}: model.onnx reads {accuracy:.4f} of the test images, and by run.json it is "
            f"{stated[1]:.4f}: they are not of one run"
        )

    def predict(images: np.ndarray) -> np.ndarray:
        return exported.answers(images)[1]

    print(f"robustness damages the {len(test):,} test images", flush=True)
    record["robustness"] = robustness(predict, test, SEED)
    record["second_source"] = _judged(second_source(), predict)
    with _record_is_whole(version):
        shown = page(record, test, logits)
    _write(
        version,
        {"run.json": json.dumps(record, indent=2) + "\n", "MODEL_CARD.md": model_card(record), "report.html": shown},
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


@contextmanager
def _record_is_whole(version: Path) -> Iterator[None]:
    """Turns what a missing or strange entry of a run record leads to into a ReportError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, UndefinedError) as error:
        raise ReportError(
            f"{version / 'run.json'} is not as this digits-train writes it ({error}): run the recipe again"
        ) from error


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
