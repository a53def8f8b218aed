import re
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.html_page import Page
from training import figures
from training.calibrate import softmax
from training.dataset import Dataset
from training.evaluate import ERRORS, evaluate, risk_coverage
from training.report import page


def test_the_page_is_well_formed_and_refers_to_no_other_file(content: str) -> None:
    parsed = Page(content)
    assert not {tag for tag, _ in parsed.elements} & {"script", "link", "iframe", "object", "embed"}
    addresses = [attrs[name] for _, attrs in parsed.elements for name in ("src", "href") if name in attrs]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert "://" not in content
    assert "@import" not in content
    ids = Counter(attrs["id"] for _, attrs in parsed.elements if "id" in attrs)
    assert set(ids.values()) == {1}
    assert {address[1:] for address in addresses if address[0] == "#"} | set(re.findall(r"url\(#(\w+)\)", content)) <= set(
        ids
    )


def test_every_picture_has_a_description(content: str) -> None:
    parsed = Page(content)
    pictures = [index for index, (tag, _) in enumerate(parsed.elements) if tag == "svg"]
    assert len(pictures) == 5
    parents = [parsed.elements[index - 1][1] for index in pictures]
    assert [attrs["role"] for attrs in parents] == ["img"] * 5
    descriptions = " ".join(attrs["aria-label"] for attrs in parents)
    for word in ("Training curves", "Confusion matrix", "Reliability diagram", "Risk-coverage curve", "worst is shift 2 px"):
        assert word in descriptions
    assert all(attrs["alt"] for tag, attrs in parsed.elements if tag == "img")


def test_the_page_shows_the_numbers_of_the_record(content: str, reported: dict[str, Any]) -> None:
    text = " ".join(Page(content).text.split())
    test = reported["test"]
    assert f"accuracy on 200 test images {100 * test['accuracy']:.2f} %" in text
    assert f"{test['calibration_error']:.4f}" in text
    assert f"{100 * test['recall'][3]:.2f} % {100 * test['precision'][3]:.2f} %" in text
    assert "0.5 % 1.23 % 0.7500 91.00 % 92.30 % 1 0.400 %" in text
    assert "0.2 % 1.23 % 0.7500 91.00 % 92.30 % 1 0.000 %" in text
    assert "0.1 % none can be certified" in text
    assert f"shift 2 px 65.43 % {100 * (test['accuracy'] - 0.6543):.2f}" in text


def test_a_threshold_that_exceeds_its_target_on_test_images_is_marked(
    content: str, record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    assert 'class="above"' not in content
    record["thresholds"]["0.01"]["test_error"] = 0.0123
    assert "1.230 % above" in page(record, drawn.test, logits)


def test_the_errors_shown_are_the_most_confident_ones(content: str, drawn: Dataset, logits: NDArray[np.float64]) -> None:
    parsed = Page(content)
    found = [re.fullmatch(r"Test image (\d+), a (\d)", attrs["alt"]) for tag, attrs in parsed.elements if tag == "img"]
    shown = [int(match[1]) for match in found if match]
    probabilities = softmax(logits, 1.25)
    wrong = {index for index in range(200) if probabilities[index].argmax() != drawn.test.labels[index]}
    assert len(wrong) > len(shown) == 30
    assert set(shown) <= wrong
    confidence = probabilities.max(axis=1)
    assert [confidence[index] for index in shown] == sorted((confidence[index] for index in wrong), reverse=True)[:30]
    assert [int(match[2]) for match in found if match] == drawn.test.labels[shown].tolist()
    worst = shown[0]
    caption = f"{drawn.test.labels[worst]} read as {probabilities[worst].argmax()} {100 * confidence[worst]:.2f} %"
    assert caption in parsed.text


def test_a_perfect_classifier_has_a_page_too(record: dict[str, Any], drawn: Dataset) -> None:
    logits = 20.0 * np.eye(10)[drawn.test.labels]
    record["test"] = asdict(evaluate(softmax(logits, 1.25), drawn.test.labels))
    assert "Every test image was classified correctly" in Page(page(record, drawn.test, logits)).text


def test_the_page_lists_digits_from_elsewhere(content: str) -> None:
    text = " ".join(Page(content).text.split())
    assert "another hand 1,234 45.67 % (40.00 % to 50.00 %) 50.00 % 123" in text
    assert "thick pens 100 98.00 % (93.00 % to 99.00 %) 0.00 % 0" in text
    assert "32.1 % \N{EN DASH}" in text, "no image of a nine"


def test_figures_render_as_png_files() -> None:
    drawn = [
        figures.curves({"loss": [0.5], "accuracy": [1.0]}),
        figures.confusion(np.eye(10, dtype=int).tolist(), "no errors"),
        figures.image_grid([np.zeros((28, 28)), np.ones((3, 5))], ["one", "two\nlines"], columns=4),
        figures.risk_coverage(*risk_coverage(np.eye(10), np.arange(10)), {str(error): (1.0, 0.0) for error in ERRORS}),
    ]
    assert all(figures.png(figure).startswith(b"\x89PNG") for figure in drawn)
