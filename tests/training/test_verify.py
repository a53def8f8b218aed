import json
import re
import shutil
from pathlib import Path

import onnx
import pytest

from serving.repository.versions import ModelVersion
from serving.settings import BUNDLED
from training.__main__ import main


def test_a_version_that_contradicts_itself_is_refused(
    bundled: ModelVersion, mnist_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal() -> str:
        assert main(["verify", str(tmp_path), "--data", str(mnist_path)]) == 1
        return capsys.readouterr().err

    assert "is not a version that `digits-train run` made: run.json: No such file" in refusal()
    record = json.loads(bundled.path.with_name("run.json").read_text())
    record["test"]["accuracy"] = 0.9999
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "model.keras can't be loaded: the file does not exist" in refusal()
    shutil.copy(bundled.path.with_name("model.keras"), tmp_path)
    assert "model.onnx can't be loaded" in refusal()
    model = onnx.load(bundled.path)
    onnx.save(model, tmp_path / "model.onnx")
    assert "temperature and test accuracy are" in refusal()
    entries = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, entries | {"test_accuracy": "0.9999"})
    onnx.save(model, tmp_path / "model.onnx")
    assert "the metadata give a test accuracy of 0.9999, but it is" in refusal()
    onnx.helper.set_model_props(model, {"precision": "int8"})
    onnx.save(model, tmp_path / "model.onnx")
    assert "is not a version that `digits-train run` made: 'temperature'" in refusal()


@pytest.mark.parametrize(("name", "least"), [("digits", 0.995), ("digits-flagship", 0.996)])
def test_bundled_models_have_their_stated_accuracy_and_match_keras(
    name: str, least: float, mnist_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every, nearly = "all 10,000", "all but [1-5] of 10,000"
    for version, agreement in zip(sorted((BUNDLED / name).iterdir()), (every, f"{every}|{nearly}"), strict=True):
        record = json.loads((version / "run.json").read_text())
        assert main(["verify", str(version), "--data", str(mnist_path)]) == 0, "the accuracy is the one in the metadata"
        output = capsys.readouterr().out
        assert f"test accuracy {record['test']['accuracy']:.4f}" in output
        assert record["test"]["accuracy"] >= least
        assert re.search(f"ONNX agrees with its source on ({agreement}) images at batch 1, 7, 32, 128", output)
