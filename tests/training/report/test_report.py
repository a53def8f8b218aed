import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import training.report
from serving.settings import BUNDLED
from tests.support.html_page import Page
from training.__main__ import main
from training.damage import SEVERE
from training.dataset import Dataset, Examples
from training.exported import Exported
from training.report import ReportError, _on_source, report
from training.robustness import mean_accuracy
from training.version_directory import VersionError


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
