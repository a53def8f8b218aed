from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from training.__main__ import main
from training.dataset import Dataset

if TYPE_CHECKING:
    from training.studies.workbench import Workbench


def test_every_study_is_listed_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    from training.studies.study import STUDIES

    assert main(["study"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(STUDIES)
    assert all("seed notebook" in line for line in listed)
    assert {
        *("samples", "balance", "gallery", "curves", "confusion", "batch-size", "optimiser", "parameters", "filters"),
        *("stride-padding", "max-pooling", "local-vs-global", "label-noise", "detection"),
    } <= set(STUDIES)


def test_an_invalid_study_command_is_refused_with_the_valid_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "sample"]) == 2
    assert "no study is named 'sample'; the studies are: samples, balance," in capsys.readouterr().err
    assert main(["study", "samples", "--epochs", "3"]) == 2
    assert "study samples does not use --epochs" in capsys.readouterr().err
    assert main(["study", "confusion", "--recipes", "mlp128", "convnett"]) == 2
    assert "no recipe is named 'convnett'; the recipes are: cnn8," in capsys.readouterr().err
    assert main(["study", "gallery", "--models", "nowhere"]) == 2
    assert "--models nowhere is not a directory" in capsys.readouterr().err


def test_a_study_loads_the_named_files_of_data_and_writers(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(*arguments: Any) -> Dataset:
        loaded.append(arguments)
        return drawn

    monkeypatch.setattr("training.commands.load_dataset", load)
    assert main(["study", "balance", "--data=mnist.npz", "--writers=writers.npz", f"--out={tmp_path}"]) == 0
    assert loaded == [("mnist.npz", Path("writers.npz"), False)]


def test_an_unwritable_results_directory_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["study", "parameters", "--out", str(tmp_path / "file" / "studies")]) == 1
    assert f"cannot write to {tmp_path}/file/studies: Not a directory" in capsys.readouterr().err


def test_all_studies_share_one_workbench_and_an_interrupt_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.studies.study import STUDIES

    benches = []

    def note(bench: "Workbench") -> str:
        benches.append(bench)
        return "noted"

    def interrupt(bench: "Workbench") -> str:
        raise KeyboardInterrupt

    for name, known in list(STUDIES.items()):
        monkeypatch.setitem(STUDIES, name, replace(known, function=note))
    assert main(["study", "all", "--out", str(tmp_path), "--epochs", "1"]) == 0
    free = [study for study in STUDIES.values() if not study.needs]  # the others are skipped

    assert len(benches) == len(free)
    assert len(set(map(id, benches))) == 1
    assert capsys.readouterr().out.count(" noted (") == len(free)
    monkeypatch.setitem(STUDIES, "gallery", replace(STUDIES["gallery"], function=interrupt))
    assert main(["study", "all", "--out", str(tmp_path)]) == 130
