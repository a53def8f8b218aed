import json
import platform
import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.support.run_records import write_record
from training.__main__ import main
from training.dataset import Dataset
from training.exported import VerificationError
from training.version_directory import read_record

ROOT = Path(__file__).parents[2]


def test_a_model_that_fails_verification_is_not_published(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import pipeline
    from training.recipes import RECIPES

    def fail(*_: object) -> None:
        raise VerificationError("not the same")

    monkeypatch.setattr("training.make_version.verify", fail)  # no input makes a correct exporter write a wrong file
    with pytest.raises(VerificationError):
        pipeline.run(RECIPES["convnet"], drawn, 0, 1, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".convnet-seed0-epochs1.npz"], "the checkpoint is kept"


def test_a_network_trained_without_tensorflow_is_exported_by_a_rerun(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import keras

    from training import pipeline
    from training.export import ExportError
    from training.recipes import RECIPES

    def without_tensorflow(name: str) -> str:
        if name in ("tensorflow", "tf2onnx"):
            raise PackageNotFoundError(name)
        return version(name)

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(keras.backend, "backend", lambda: "jax")
        elsewhere.setattr("training.make_version.installed", without_tensorflow)
        elsewhere.setattr(platform, "machine", lambda: "abacus")
        with pytest.raises(ExportError, match=r"got jax; the trained network is kept in .*\.convnet-seed0-epochs1\.npz"):
            pipeline.run(RECIPES["convnet"], drawn, 0, 1, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".convnet-seed0-epochs1.npz"]
    capsys.readouterr()
    published = pipeline.run(RECIPES["convnet"], drawn, 0, 1, tmp_path)
    assert "resume     after epoch 1" in capsys.readouterr().out
    record = json.loads((published / "run.json").read_text())
    assert (record["backend"], record["machine"].split(",")[0]) == ("jax", "abacus")
    assert [file.name for file in tmp_path.iterdir()] == [published.name]


def test_a_network_of_two_heads_without_held_out_images_can_be_served(drawn: Dataset, tmp_path: Path) -> None:
    from serving.inference.model import open_model
    from training import pipeline
    from training.recipes import RECIPES
    from training.synthesis.mixture import Mixture

    mixture = Mixture(images=200, passes=1, bank=20, teacher=0)
    recipe = replace(RECIPES["folded"], mixture=mixture, validation_images=0, batch_size=50)
    published = pipeline.run(recipe, drawn, 0, 1, tmp_path)
    served = open_model((published / "model.onnx").read_bytes(), published.name)
    assert (served.metadata.contract, served.metadata.whole_threshold) == ("2", 0)
    assert read_record(published)["whole"]["held_out_lost"] is None
    assert "its threshold is 0, and the head refuses nothing" in (published / "MODEL_CARD.md").read_text()


def accepting_version(model_directory: Path) -> Path:
    """Writes what the guard of the newest version reads: the run record of a version that accepts digits."""
    return write_record(model_directory / "20200101000000", thresholds={"0.005": {"threshold": 0.9}})


def test_a_version_that_accepts_nothing_replaces_none_that_accepts(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.commands.load_dataset", lambda *_: drawn)  # MNIST may be missing
    old = accepting_version(tmp_path / "digits")
    command = ["run", "dense512", "--epochs=1", f"--models={tmp_path}"]
    assert main(command) == 1
    ended = capsys.readouterr()
    assert f"replace {old}, which accepts digits. To certify thresholds, hold images out (`run`" in ended.err
    assert "Epoch" not in ended.out, "nothing was trained"

    assert main([*command, "--hold-out=100"]) == 1, "a hundred images certify nothing"
    assert [file.name for file in (tmp_path / "digits").iterdir() if file != old] == [".dense512-seed0-epochs1.npz"]
    capsys.readouterr()

    assert main([*command, "--hold-out=100", "--replace", "--risk=0.05"]) == 0, "the checkpoint is used"
    printed = capsys.readouterr().out
    assert "resume     after epoch 1" in printed
    assert "warning    a service accepts no digit of this version" in printed
    [new] = [file for file in (tmp_path / "digits").iterdir() if file != old]
    record = read_record(new)
    assert (record["training_images"], record["validation_images"], record["risk"]) == (700, 100, 0.05)
    assert (
        record["certified_on"]
        == "100 training images of MNIST, drawn at random; their writers may also have written training images"
    )
    assert record["accepts_by_default"] is False
    assert main(["export", str(new)]) == 0, "the newest version accepts nothing, so nothing is lost"
    assert read_record(max((tmp_path / "digits").iterdir(), key=lambda path: path.name))["risk"] == 0.05


def served(directory: Path) -> str:
    """The command by which `make serve` would start the service in this directory, after its notices."""
    command = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.serving", f"--file={ROOT}/Makefile", "serve"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout


def test_make_serve_chooses_trained_models_once_one_accepts_digits(tmp_path: Path) -> None:
    assert "--models" not in served(tmp_path)
    version = tmp_path / "models" / "digits" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").touch()
    (version / "run.json").write_text(json.dumps({"accepts_by_default": False}, indent=2))
    printed = served(tmp_path)
    assert "no version in models/digits accepts digits: serving the bundled models" in printed
    assert "--models models" not in printed
    (version / "run.json").write_text(json.dumps({"accepts_by_default": True}, indent=2))
    assert "--models models" in served(tmp_path)
    (version / "run.json").unlink()
    assert "--models models" in served(tmp_path), "a model file alone is someone's choice"


def test_make_train_holds_images_out_for_every_recipe(tmp_path: Path) -> None:
    command = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.everything", f"--file={ROOT}/Makefile"]
    ran = subprocess.run([*command, "train", "RECIPE=convnet"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "run convnet --hold-out 10000 --models models" in ran.stdout
