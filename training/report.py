"""Measures a version on damaged images, another source and non-digits, and renders the results as one HTML page."""

import base64
import io
import json
from collections.abc import Iterator
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
from training.certificates import default_target
from training.damage import SEVERE
from training.dataset import Dataset, Examples
from training.exported import Exported
from training.model_card import TEMPLATES, model_card, summary
from training.non_digits import count_accepted, evaluation_kinds, table
from training.robustness import mean_accuracy, robustness, sources
from training.version_directory import read_record

SEED = 0  # of damage and non-digits; fixed, so that all versions face the same images
NON_DIGITS = 1000  # images per kind; with none accepted, the 95 % upper bound is 0.3 %
WORST = 30  # number of errors shown


class ReportError(Exception):
    """The version can't be reported on, because data are missing or inconsistent; the message names them."""


def report(version: Path, dataset: Dataset) -> Path:
    """Measures a version on images unlike its test images and writes the run record, the model card and an HTML page.

    Existing files are replaced only after all new files have been written beside them.

    Args:
        version: a version directory that `pipeline.run` published.
        dataset: the dataset that it was trained and evaluated on.

    Returns:
        The path of the page, report.html in `version`.

    Raises:
        VersionError: `version` is not a version directory, or another release made it.
        ReportError: its record is malformed, its model and record disagree, or it can't be written to.
        VerificationError: its model can't be loaded.
    """
    record, test = read_record(version), dataset.test
    with _record_is_whole(version):
        model_card(record)  # fails early, before minutes of measurement
        recorded = (record["dataset_sha256"], record["test"]["accuracy"])
    exported = Exported(version / "model.onnx")
    logits, probabilities = exported.answers(test.images)
    accuracy = evaluate.evaluate(probabilities, test.labels).accuracy
    if (dataset.sha256, accuracy) != recorded:
        raise ReportError(
            f"{version}: model.onnx has a test accuracy of {accuracy:.4f}, but run.json records {recorded[1]:.4f}: "
            "they are from different runs or different data"
        )

    def predict(images: np.ndarray) -> np.ndarray:
        return exported.answers(images)[1]

    print(f"robustness measuring accuracy on {len(test):,} damaged test images", flush=True)
    record["robustness"] = rows = robustness(predict, test, SEED)
    record["damage_mean"] = {"all": mean_accuracy(rows), "severe": mean_accuracy(rows, SEVERE)}
    record["sources"] = [_on_source(name, source, exported, record) for name, source in sources(test)]
    record["no_digit"] = _non_digits(exported, record["thresholds"], test)
    with _record_is_whole(version):
        html = page(record, test, logits)
    _write(
        version,
        {"run.json": json.dumps(record, indent=2) + "\n", "MODEL_CARD.md": model_card(record), "report.html": html},
    )
    return version / "report.html"


def page(record: dict[str, Any], test: Examples, logits: np.ndarray) -> str:
    """Renders one HTML page with the results in `record` and pictures; the page refers to no other file.

    Args:
        record: the run record, with robustness and other sources.
        test: the images that the version was evaluated on.
        logits: (N, 10), the version's logits for these images.
    """
    probabilities = softmax(logits, record["temperature"])
    bands = {"temperature 1": evaluate.reliability(softmax(logits, 1), test.labels)}
    if record["validation_images"]:
        bands[f"temperature {record['temperature']:.3f}"] = evaluate.reliability(probabilities, test.labels)
    overview = summary(record)
    marks = {
        target: (found["test_coverage"], found["test_error"])
        for target, found in overview["certified"].items()
        if found.get("test_error") is not None
    }
    pictures = {
        **({"curves": figures.curves(record["history"])} if "history" in record else {}),  # a cascade has none
        "confusion": figures.confusion(record["test"]["confusion"]),
        "reliability": figures.reliability(bands),
        "risk_coverage": figures.risk_coverage(*evaluate.risk_coverage(probabilities, test.labels), marks),
        "robustness": figures.robustness(record["robustness"]),
    }
    mistakes = [
        {
            "number": index,
            "digit": int(test.labels[index]),
            "read": int(probabilities[index].argmax()),
            "confidence": float(probabilities[index].max()),
            "address": _png_address(test.images[index]),
        }
        for index in worst_mistakes(probabilities, test.labels, WORST)
    ]
    inlined = {name: _inline(name, figure) for name, figure in pictures.items()}
    return TEMPLATES.get_template("report.html").render(record=record, pictures=inlined, mistakes=mistakes, **overview)


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """Returns the indices of the `count` misclassified images with the highest confidence, in descending order."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    indices: list[int] = wrong[order[:count]].tolist()
    return indices


def _on_source(name: str, source: Examples, exported: Exported, record: dict[str, Any]) -> dict[str, Any]:
    """Evaluates a version on digits of another source, at the threshold that a service uses by default.

    Returns:
        An item of the run record's `sources`: `rate` is the certified error rate of the threshold, or None; `accepted` and
        `wrong` count the accepted answers and the wrong ones among these.
    """
    probabilities, confidence, _ = exported.decisions(source.images)
    evaluation = evaluate.evaluate(probabilities, source.labels)
    _, correct = evaluate.score(probabilities, source.labels)
    rate = default_target(record)
    threshold = np.inf if rate is None else record["thresholds"][rate]["threshold"]
    accepted = confidence >= np.float64(threshold)
    return {
        "name": name,
        "images": evaluation.images,
        "accuracy": evaluation.accuracy,
        "interval": evaluation.interval,
        "accuracy_by_digit": evaluation.recall,
        "rate": rate,
        "accepted": int(accepted.sum()),
        "wrong": int((accepted & ~correct).sum()),
    }


def _non_digits(exported: Exported, thresholds: dict[str, dict[str, Any] | None], digits: Examples) -> list[dict[str, Any]]:
    """Counts the non-digits that a version accepts at its certified thresholds, for its record, and prints the counts."""
    kinds = evaluation_kinds(digits, SEED, min(NON_DIGITS, len(digits)))
    print(f"no digit   counting the accepted of {len(kinds)} kinds of {len(kinds[0].images):,} images", flush=True)
    rows = count_accepted(
        exported.decisions, kinds, {rate: found["threshold"] for rate, found in thresholds.items() if found}
    )
    print(table(rows), flush=True)
    return rows


@contextmanager
def _record_is_whole(version: Path) -> Iterator[None]:
    """Turns the errors that a malformed entry of a run record causes into a ReportError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, UndefinedError) as error:
        raise ReportError(
            f"{version / 'run.json'} is not a run record that digits-train wrote ({error}); run the recipe again"
        ) from error


def _write(directory: Path, contents: dict[str, str]) -> None:
    """Writes all files beside their targets first and renames them into place only when every write has succeeded."""
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
    return Markup(figures.svg(figure, name))  # noqa: S704  # drawn here from numbers, so it is safe to embed


def _png_address(image: np.ndarray) -> str:
    """Encodes an image, (28, 28) uint8, as a dark-on-light PNG in a data URL."""
    content = io.BytesIO()
    Image.fromarray(255 - image).save(content, "png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
