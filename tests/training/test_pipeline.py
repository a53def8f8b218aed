import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from training.dataset import Dataset
from training.verify import VerificationError


def test_a_model_that_fails_verification_is_not_published(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import pipeline
    from training.recipes import RECIPES

    def fail(*_: object) -> None:
        raise VerificationError("not the same")

    monkeypatch.setattr(pipeline, "verify", fail)  # no input makes a correct exporter write a wrong file
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
        elsewhere.setattr("training.pipeline.installed", without_tensorflow)
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
