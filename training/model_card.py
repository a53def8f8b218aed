"""Renders the model card from the run record: facts and limits that an operator should know before relying on a model."""

from typing import Any

import jinja2

from training.certificates import default_target
from training.evaluate import DEFAULT_ERROR
from training.non_digits import by_group

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("training"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals["default_error"] = DEFAULT_ERROR
TEMPLATES.filters["percent"] = lambda share, digits=2: f"{100 * share:.{digits}f} %"


def _confidence(value: float) -> str:
    """Formats a confidence with four decimals, or with as many as tell it from 1."""
    return next(text for decimals in range(4, 18) if (text := f"{value:.{decimals}f}") < "1" or value == 1)


TEMPLATES.filters["confidence"] = _confidence


def model_card(record: dict[str, Any]) -> str:
    """Renders a version's run record as Markdown, with the headings of Hugging Face's model cards.

    Source: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
    """
    return TEMPLATES.get_template("model_card.md").render(record=record, **summary(record))


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Derives the values that both the card and the HTML page show.

    Returns:
        errors: number of misclassified test images.
        misread: the digit with the lowest recall on the test images.
        confusions: true digit, predicted digit and count of the three most frequent errors, in descending order.
        certified: the record of each certified threshold by its target error, in descending order.
        default: the target error whose threshold a service uses for callers that name none; None without such a threshold.
        writers_known: True if bounds by writer are known.
        non_digits: the record's counts of accepted non-digits by group, see `by_group`.
    """
    test = record["test"]
    counts = test["confusion"]
    pairs = [(true, read, counts[true][read]) for true in range(10) for read in range(10) if true != read]
    targets = sorted(record["thresholds"], key=float, reverse=True)
    return {
        "errors": sum(count for *_, count in pairs),
        "misread": min((digit for digit in range(10) if test["recall"][digit] is not None), key=test["recall"].__getitem__),
        "confusions": [pair for pair in sorted(pairs, key=lambda pair: -pair[2])[:3] if pair[2]],
        "certified": {target: record["thresholds"][target] for target in targets if record["thresholds"][target]},
        "default": default_target(record),
        "writers_known": any(found and found["by_writer"] is not None for found in record["thresholds"].values()),
        "non_digits": by_group(record.get("no_digit", [])),
    }
