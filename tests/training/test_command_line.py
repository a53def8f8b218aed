import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main


def test_wrong_usage_and_failures_are_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mnist_path: Path
) -> None:
    assert main(["run", "convnett"]) == 2
    assert "no recipe is named 'convnett'; the recipes are: cnn8, fcn512," in capsys.readouterr().err
    assert main(["run", "convnet", "--data", str(tmp_path / "none.npz")]) == 1
    assert "digits-train: cannot read the data" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["run", "convnet", "--epochs", "0"])
    assert ended.value.code == 2
    (tmp_path / "file").touch()
    command = ["run", "convnet", f"--models={tmp_path}", f"--tensorboard={tmp_path}/file"]
    assert main([*command, f"--data={mnist_path}"]) == 1
    assert f"digits-train: cannot write to {tmp_path}/file" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert "flagship-small" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "a/b", ".hidden", "-x", "a b", "ä"])
def test_a_model_name_that_is_not_a_visible_directory_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "convnet", f"--name={name}"])
    assert ended.value.code == 2
    assert "must be letters, digits, '.', '_' and '-'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "status", "message"),
    [
        ("abacus", 2, "KERAS_BACKEND must be one of tensorflow, jax, torch, not 'abacus'"),
        ("torch", 1, "No module named 'torch'; to train, install the Keras backend torch"),
    ],
)
def test_a_missing_backend_is_named(backend: str, status: int, message: str) -> None:
    if importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is installed")
    command = [sys.executable, "-m", "training", "list"]
    ended = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, f"digits-train: {message}\n")


def test_a_list_whose_reader_is_gone_ends_silently() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as output:
        command = [sys.executable, "-m", "training", "study"]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "")
