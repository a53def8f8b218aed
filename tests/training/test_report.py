import copy
import json
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import training.report
from serving.settings import BUNDLED
from training import figures
from training.__main__ import main
from training.calibrate import softmax
from training.damage import SEVERE
from training.dataset import Dataset, Examples
from training.evaluate import ERRORS, evaluate, risk_coverage
from training.exported import Exported
from training.model_card import model_card
from training.report import ReportError, _on_source, page, report
from training.robustness import mean_accuracy
from training.version_directory import VersionError

Images = NDArray[np.uint8]
VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def made(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of low accuracy, with too few validation images to certify a threshold."""
    from training import pipeline
    from training.recipes import RECIPES

    recipe = replace(RECIPES["cnn8"], validation_images=100)
    return pipeline.run(recipe, drawn, 0, 2, tmp_path_factory.mktemp("models"))


@pytest.fixture
def version(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "version"))


@pytest.fixture(scope="module")
def logits(drawn: Dataset) -> NDArray[np.float64]:
    """Logits for the test images that are mostly correct, and sometimes confident of a wrong digit."""
    noise = np.random.default_rng(1).normal(0, 2.5, (len(drawn.test), 10))
    result: NDArray[np.float64] = noise + 6 * np.eye(10)[drawn.test.labels]
    return result


@pytest.fixture(scope="module")
def reported(made: Path, drawn: Dataset, logits: NDArray[np.float64]) -> dict[str, Any]:
    """The record of a version with these logits, as a report completes it."""
    tested = asdict(evaluate(softmax(logits, 1.25), drawn.test.labels))
    few = {"test_fields": 40, "test_accuracy": 0.975, "test_confidence": 0.9876}
    certified = {"threshold": 0.75, "coverage": 0.91, "errors": 3, "by_writer": 0.0123}
    certified |= {"test_coverage": 0.923, "test_error": 0.004, "test_errors": 1}
    return {
        **json.loads((made / "run.json").read_text()),
        "temperature": 1.25,
        "test": tested,
        "thresholds": {"0.01": certified, "0.005": certified, "0.002": {**certified, "test_error": 0.0}, "0.001": None},
        "fields": {"5": {**few, "thresholds": {"0.05": certified, "0.02": None}}},
        "robustness": [
            {"damage": "none", "amount": "", "accuracy": tested["accuracy"], "images": 200},
            {"damage": "shift", "amount": "2 px", "accuracy": 0.6543, "images": 200},
        ],
        "sources": [
            {
                "name": "another hand",
                "images": 1234,
                "accuracy": 0.4567,
                "interval": [0.4, 0.5],
                "accuracy_by_digit": [0.321] * 9 + [None],
                "rate": "0.005",
                "accepted": 617,
                "wrong": 123,
            },
            {"name": "thick pens", "images": 100, "accuracy": 0.98, "rate": "0.005", "accepted": 0, "wrong": 0},
        ],
    }


@pytest.fixture
def record(reported: dict[str, Any]) -> dict[str, Any]:
    """A copy of the record that a test may change."""
    return copy.deepcopy(reported)


@pytest.fixture(scope="module")
def content(reported: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]) -> str:
    """The page of this record."""
    return page(reported, drawn.test, logits)


class Page(HTMLParser):
    """A parsed page; an unbalanced tag fails."""

    def __init__(self, content: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


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


def test_page_and_card_mention_the_lack_of_held_out_images(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    history = {name: record["history"][name] for name in ("loss", "accuracy")}
    record |= {"validation_images": 0, "validation": None, "thresholds": {}, "temperature": 1.0, "history": history}
    record |= {"certified_on": None, "fields": {}}
    text = Page(page(record, drawn.test, logits)).text
    assert "no validation curves" in text
    assert "No threshold is certified: no images were held out" in text
    card = model_card(record)
    assert "No images were held out." in card
    assert "no images to fit a temperature to or to certify a threshold on" in card
    assert "**It promises no error rate.** No images were held out to certify one on" in beginning(card)
    assert "Certified Thresholds" not in card


def test_a_perfect_classifier_has_a_page_too(record: dict[str, Any], drawn: Dataset) -> None:
    logits = 20.0 * np.eye(10)[drawn.test.labels]
    record["test"] = asdict(evaluate(softmax(logits, 1.25), drawn.test.labels))
    assert "Every test image was classified correctly" in Page(page(record, drawn.test, logits)).text


def test_a_digit_that_is_never_predicted_is_reported(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    without_8 = logits.copy()
    without_8[:, 8] = -100
    record["test"] = asdict(evaluate(softmax(without_8, 1.25), drawn.test.labels))
    assert "never predicted" in Page(page(record, drawn.test, without_8)).text
    assert "| 8 | 0.00 % | never predicted |" in model_card(record)


def test_the_card_has_its_headings_and_the_limits_of_its_guarantee(record: dict[str, Any]) -> None:
    card = model_card(record)
    assert card.startswith("---\nlicense: apache-2.0\n")
    headings = re.findall(r"^##+ (.*)$", card, re.MULTILINE)
    assert headings[:3] == ["Model Details", "Uses", "Direct Use"]
    for heading in ("Out-of-Scope Use", "Training Data", "Training Procedure", "Evaluation", "Robustness", "Citation"):
        assert heading in headings
    assert "| 0.5 % | 1.23 % | 0.7500 | 91.00 % | 3 | 92.30 % | 1 | 0.400 % |" in card
    assert "| 0.1 % | | none can be certified | | | | | |" in card
    assert "| 5 | 5.0 % | 1.23 % | 0.7500 | 91.00 % | 92.30 % | 1 |" in card
    assert "| 5 | 2.0 % | | none | | | |" in card
    assert "| 5 | 40 | 97.50 % | 98.76 % |" in card
    assert "| shift 2 px | 65.43 % |" in card
    assert "The temperature was fitted to the same" in card
    assert "at most 0.001, separately for each threshold" in card
    assert 'The column "by writer" states an upper bound' in card
    assert "drawn at random, and their writers also wrote training images" in card
    for found in record["thresholds"].values():
        if found:
            found["by_writer"] = None
    card = model_card(record)
    assert "| 0.5 % | unknown | 0.7500 |" in card
    assert "the writers of these images are unknown" in card
    assert "by writers of whom no image was trained on" in model_card(record | {"validation_writers": "other"})


def beginning(card: str) -> str:
    """The card's text before its first section, on one line."""
    return " ".join(card.split("## Model Details")[0].split())


def test_the_card_begins_with_the_mail_that_its_promise_holds_for(record: dict[str, Any]) -> None:
    text = beginning(model_card(record))
    assert "Each promise holds for mail like the images that it was certified on: 100 training images of MNIST" in text
    assert "promises at most 0.5 % errors, and accepts 91.00 % of such images" in text
    assert "| another hand | 1,234 | 45.67 % (40.00 % to 50.00 %) | 50.00 % | 123, 19.94 % |" in text
    assert "| thick pens | 100 | 98.00 % | 0.00 % | 0 |" in text
    record["thresholds"]["0.005"] = record["thresholds"]["0.002"] = None
    assert "default error rate of 0.5 % could be certified: **by default, a service accepts nothing.**" in beginning(
        model_card(record)
    )


def test_the_page_lists_digits_from_elsewhere(content: str) -> None:
    text = " ".join(Page(content).text.split())
    assert "another hand 1,234 45.67 % (40.00 % to 50.00 %) 50.00 % 123" in text
    assert "thick pens 100 98.00 % 0.00 % 0" in text
    assert "32.1 % \N{EN DASH}" in text, "no image of a nine"


def test_card_and_page_show_the_non_digits_accepted_by_kind(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    assert "Expect letters, marks and several digits in one image to be accepted." in " ".join(model_card(record).split())
    assert "It was not measured" in page(record, drawn.test, logits)

    def row(kind: str, group: str, accepted: int) -> dict[str, Any]:
        counts = {"accepted": {"0.005": accepted}, "upper": {"0.005": 0.0456}}
        return {"kind": kind, "group": group, "images": 1_000, **counts, "refused_by_whole": 900}

    kinds = [row("noise", "trained", 2), row("ticks", "held_out", 100), row("<stars>", "held_out", 50)]
    record |= {"no_digit": kinds, "whole": {"threshold": 0.25, "held_out_lost": 0.001, "test_lost": 0.0012}}
    card = model_card(record)
    assert "| kinds that training never makes | images | refused by the second head | accepted at 0.5 % |" in card
    assert "| ticks | 1,000 | 90.0 % | 10.0 % (4.6 %) |\n| <stars> | 1,000 | 90.0 % | 5.0 % (4.6 %) |" in card
    assert "| **mean** | | | **7.5 %** |\n| **worst** | | | ticks |\n" in card
    assert "where it gives less than 0.250000" in card
    assert "loses 0.10 %. It refuses 0.12 % of the test images." in card
    assert "digit_shaped" not in card
    text = " ".join(Page(page(record, drawn.test, logits)).text.split())
    assert "ticks 1,000 90.0 % 10.0 % (4.6 %) <stars> 1,000 90.0 % 5.0 % (4.6 %) mean 7.5 % worst ticks" in text


def test_a_version_certified_on_other_mail_has_card_and_page(
    record: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]
) -> None:
    found = {"threshold": 0.99999, "coverage": 0.9, "errors": 2, "by_writer": None}  # nothing about test images
    record |= {
        "mail": {"kind": "npz", "writers": None, "notes": []},
        "made_from": "20200101000000",
        "training_commit": "none",
    }
    record |= {"certified_on": "700 pieces of our mail", "thresholds": {"0.005": found}}
    record |= {"fields": {"4": {"fields": 175, "thresholds": {"0.05": found}}}}
    card = model_card(record)
    assert "certified on: 700 pieces of our mail. The digits are handwritten" in beginning(card)
    assert "| 0.5 % | unknown | 0.99999 | 90.00 % | 2 | | | |" in card
    assert "| 4 | 5.0 % | unknown | 0.99999 | 90.00 % | | |" in card
    assert "The temperature was fitted to the same" not in card
    assert "or for your mail" not in card
    text = " ".join(Page(page(record, drawn.test, logits)).text.split())
    assert "0.5 % unknown 0.99999 90.00 % \N{EN DASH} \N{EN DASH} \N{EN DASH}" in text
    record["fields"] = {}
    assert "A field, such as" not in model_card(record)


def test_the_card_names_other_data_than_mnist(record: dict[str, Any]) -> None:
    record["dataset"] = {"name": "our-mail", "training_images": 900}
    card = model_card(record)
    assert "test images of our-mail is" in beginning(card)
    assert "700 of the 900 training images of our-mail" in card
    assert "ylecun" not in card
    assert "100 were used for neither purpose" in card


def test_the_card_of_a_new_version_names_the_missing_report(made: Path) -> None:
    card = (made / "MODEL_CARD.md").read_text()
    assert "Not measured yet: `digits-train report VERSION_DIRECTORY` measures it" in card
    assert "- Adam, batch size 32, 2 epochs, seed 0." in card


def test_a_report_measures_and_writes_record_card_and_page(
    version: Path, drawn: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.commands.load_dataset", lambda *_: drawn)  # MNIST may be missing
    monkeypatch.setattr(training.report, "NON_DIGITS", 20)  # more take minutes
    monkeypatch.setattr(training.report, "sources", lambda _: [("another hand", drawn.test[:50])])  # the real one is slow
    before = json.loads((version / "run.json").read_text())
    assert main(["report", str(version)]) == 0
    assert f"report     {version}/report.html" in capsys.readouterr().out
    after = json.loads((version / "run.json").read_text())
    rows, [second], kinds, mean = (after.pop(name) for name in ("robustness", "sources", "no_digit", "damage_mean"))
    assert after == before
    assert rows[0] == {"damage": "none", "amount": "", "accuracy": before["test"]["accuracy"], "images": 200}
    assert {(row["images"], tuple(row["accepted"]), row["refused_by_whole"]) for row in kinds} == {(20, (), 0)}, (
        "no threshold"
    )
    assert (second["images"], len(second["accuracy_by_digit"])) == (50, 10)
    assert (second["rate"], second["accepted"], second["wrong"]) == (None, 0, 0), "no threshold is certified"
    assert f"{100 * second['accuracy']:.2f} %" in (version / "MODEL_CARD.md").read_text()
    assert mean == {"all": mean_accuracy(rows), "severe": mean_accuracy(rows, SEVERE)}
    assert f"the severe kinds, from haze on, it is {100 * mean['severe']:.2f} %" in (version / "MODEL_CARD.md").read_text()
    Page((version / "report.html").read_text())
    assert not list(version.glob(".*"))
    assert main(["report", str(version)]) == 0, "a report can be repeated"


def test_digits_from_elsewhere_are_accepted_by_threshold_and_second_head(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = Exported(next(BUNDLED.glob("digits/*/model.onnx")))
    images, labels = np.zeros((5, 28, 28), np.uint8), np.arange(5, dtype=np.uint8)
    probabilities = np.eye(10, dtype=np.float32)[[0, 1, 2, 9, 9]]
    probabilities[1] *= np.float32(0.7)
    whole = np.array([1, 1, 0.2, 1, 0.2], np.float32)
    monkeypatch.setattr(exported, "outputs", lambda images: (probabilities, probabilities, whole))
    exported.metadata["whole_threshold"] = "0.25"
    found = {"0.01": {"threshold": 0.6}, "0.005": {"threshold": 0.8}, "0.002": {"threshold": 0.99}, "0.001": None}
    row = _on_source("another hand", Examples(images, labels), exported, {"thresholds": found})
    assert (row["rate"], row["images"], row["accuracy"]) == ("0.005", 5, 0.6)
    assert (row["accepted"], row["wrong"]) == (2, 1), "a sure 0, and a 3 read as 9"
    monkeypatch.setattr(exported, "outputs", lambda images: (probabilities, probabilities, None))
    row = _on_source("another hand", Examples(images, labels), exported, {"thresholds": found})
    assert (row["accepted"], row["wrong"]) == (4, 2), "without a second head"


def test_a_directory_without_a_version_is_refused(
    version: Path, drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.commands.load_dataset", lambda *_: drawn)
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "none is not a version that `digits-train run` made: run.json: No such file" in capsys.readouterr().err
    (version / "run.json").write_text("{")
    with pytest.raises(VersionError, match=r"run.json: Expecting"):
        report(version, drawn)
    (version / "run.json").write_text("[]")
    with pytest.raises(VersionError, match=r"run\.json is not a JSON object"):
        report(version, drawn)


@pytest.mark.parametrize(
    "damage",
    [
        {"thresholds": None},
        {"thresholds": {"much": None}},
        {"test": None},
        {"history": {}},
        {"temperature": "warm"},
        {"libraries": {}},
    ],
    ids=str,
)
def test_a_malformed_record_is_refused(
    damage: dict[str, Any], version: Path, drawn: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    haze = {"accuracy": 0.25, "damage": "haze"}
    monkeypatch.setattr(training.report, "robustness", lambda *_: [{"accuracy": 0.5, "damage": "none"}, haze])
    record = json.loads((version / "run.json").read_text()) | damage
    (version / "run.json").write_text(json.dumps(record))
    with pytest.raises(ReportError, match=r"run.json is not a run record .* \(.*\); run the recipe again"):
        report(version, drawn)
    assert json.loads((version / "run.json").read_text()) == record


def test_a_model_of_another_run_is_refused(version: Path, drawn: Dataset) -> None:
    record = json.loads((version / "run.json").read_text())
    record["test"]["accuracy"] = 0.25
    (version / "run.json").write_text(json.dumps(record))
    with pytest.raises(ReportError, match=r"run.json records 0\.2500: they are from different runs"):
        report(version, drawn)


def test_a_full_disk_leaves_every_file_unchanged(version: Path, drawn: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.report, "NON_DIGITS", 20)  # more take minutes
    monkeypatch.setattr(training.report, "sources", lambda _: [("another hand", drawn.test[:50])])  # as above
    before = {file.name: file.read_bytes() for file in version.iterdir()}
    (version / ".report.html.part").symlink_to("/dev/full")
    with pytest.raises(ReportError, match=r"cannot write the report into .*: No space left on device"):
        report(version, drawn)
    assert {file.name: file.read_bytes() for file in version.iterdir()} == before


def test_a_report_without_mnist_explains_the_remedy(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(version), "--data", str(tmp_path / "none.npz")]) == 1
    assert "digits-train: cannot read the data" in capsys.readouterr().err


def test_figures_render_as_png_files() -> None:
    drawn = [
        figures.curves({"loss": [0.5], "accuracy": [1.0]}),
        figures.confusion(np.eye(10, dtype=int).tolist(), "no errors"),
        figures.image_grid([np.zeros((28, 28)), np.ones((3, 5))], ["one", "two\nlines"], columns=4),
        figures.risk_coverage(*risk_coverage(np.eye(10), np.arange(10)), {str(error): (1.0, 0.0) for error in ERRORS}),
    ]
    assert all(figures.png(figure).startswith(b"\x89PNG") for figure in drawn)
