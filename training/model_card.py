"""The model card: what an operator should know before trusting a model, from the run record."""

from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("training"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["percent"] = lambda share, digits=2: f"{100 * share:.{digits}f} %"


def model_card(record: dict[str, Any]) -> str:
    """Markdown for people, from the run record of a version, with the headings that Hugging Face's cards have.

    After Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
    """
    return TEMPLATES.get_template("model_card.md").render(record=record, **summary(record))


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """What both the card and the page say, worked out from the record.

    Returns:
        errors: test images read wrong.
        misread: the digit with the least recall on the test images.
        confusions: true digit, digit read and count of the three most frequent errors on them, the most frequent first.
        certified: the record of each certified threshold, by its target, the largest first.
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
    }
