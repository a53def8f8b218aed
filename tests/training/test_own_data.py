"""Each form of own data from the files to a version that the service loads."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.model import open_model
from tests.support.captured_store import Store, answers
from tests.support.own_data import write_idx, write_pictures
from tests.training.test_recipe_file import RECIPE
from training.__main__ import main

Images = NDArray[np.uint8]


def npz(folder: Path, images: Images, labels: Images) -> list[str]:
    np.savez(folder / "own.npz", images=images, labels=labels, writers=np.arange(len(labels)) // 20)
    return ["--data", str(folder / "own.npz")]


def transposed_idx(folder: Path, images: Images, labels: Images) -> list[str]:
    write_idx(folder, images[:800].transpose(0, 2, 1), labels[:800], "emnist-digits-train")
    write_idx(folder, images[800:].transpose(0, 2, 1), labels[800:], "emnist-digits-test")
    return ["--data", str(folder), "--transposed"]


def pictures(folder: Path, images: Images, labels: Images) -> list[str]:
    write_pictures(folder, images, labels)
    return ["--data", str(folder)]


def captured(folder: Path, images: Images, labels: Images) -> list[str]:
    store = Store(folder / "captured.db")
    for answer, image, label in zip(answers(len(labels)), images, labels, strict=True):
        store.capture(answer, image)
        store.report(answer, str(label))
    return ["--data", store.url]


@pytest.mark.parametrize("form", [npz, transposed_idx, pictures, captured])
def test_a_network_learns_from_your_own_data(
    form: Callable[[Path, Images, Images], list[str]],
    drawings: tuple[Images, Images],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DIGITS_WRITERS", raising=False)  # it numbers the writers of MNIST
    (tmp_path / "own").mkdir()
    (tmp_path / "mine.py").write_text(RECIPE + "RECIPE = recipe('mine')")
    data = form(tmp_path / "own", *drawings)
    settings = ["--batch-size", "25", "--learning-rate", "0.02", "--epochs", "3", "--hold-out", "200", "--risk", "0.2"]
    command = ["run", str(tmp_path / "mine.py"), *data, *settings, "--models", str(tmp_path / "models"), "--replace"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    [version] = (tmp_path / "models" / "digits").iterdir()
    record = json.loads((version / "run.json").read_text())
    assert record["test"]["accuracy"] > 0.9
    assert (record["batch_size"], record["learning_rate"], record["epochs"]) == (25, 0.02, 3)
    assert (record["recipe"], record["recipe_file"]["name"]) == ("mine", "mine.py")
    about = record["dataset"]
    assert about["training_images"] + about["test_images"] == 1000
    assert record["dataset_sha256"] == about["sha256"]
    assert f"({about['kind']}): {about['training_images']:,} training and {about['test_images']:,} test images" in printed
    assert f"test images of {about['name']}" in (version / "MODEL_CARD.md").read_text()
    served = open_model((version / "model.onnx").read_bytes(), version.name)
    assert served.metadata.test_accuracy == record["test"]["accuracy"]

    assert main(["verify", str(version), *data]) == 0

    if form is pictures:
        (tmp_path / "own" / "7" / "more.png").write_bytes(next((tmp_path / "own" / "7").glob("*.png")).read_bytes())
        assert main(["certify", str(version), *data]) == 1
        assert f"was trained on images of {data[1]}" in capsys.readouterr().err, "also with one picture more"
