import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from serving.inference.model import open_model
from tests.support.model_files import rename_output
from tests.support.networks import build, export, optimised, verify
from training.__main__ import main
from training.calibrate import softmax
from training.dataset import Dataset, DatasetError
from training.evaluate import predict_logits
from training.exported import Exported, VerificationError
from training.version_directory import VersionError, load_network

if TYPE_CHECKING:
    import keras

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def trained(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that recognizes drawn digits well."""
    from training import pipeline
    from training.recipes import RECIPES

    recipe = replace(RECIPES["convnet"], validation_images=200, batch_size=16)
    return pipeline.run(recipe, drawn, 0, 6, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def quantised(trained: Path, drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its network in 8 bits, exported at a temperature of 1.7."""
    from training.quantize import quantize

    file = tmp_path_factory.mktemp("quantised") / "model.onnx"
    onnx.save(quantize(export(load_network(trained), precision="int8"), drawn.train.images), file)
    return file


def test_in_8_bits_all_layers_but_the_last_use_integers(network: "keras.Sequential", images: Images, tmp_path: Path) -> None:
    from training.quantize import quantize

    run = optimised(quantize(export(network), images[:200]), tmp_path)
    assert (run["QLinearConv"], run["QGemm"], run["Gemm"]) == (3, 1, 1)
    assert run["Conv"] == run["Relu"] == run["MaxPool"] == 0, "nothing in between returns to floating point"


def test_in_8_bits_the_pixels_are_the_input_of_the_first_convolution(images: Images, tmp_path: Path) -> None:
    from training.export import export
    from training.quantize import quantize

    run = optimised(
        quantize(export(build("folded"), 1.0, {}, channels_last=True), np.concatenate([images, 255 - images])), tmp_path
    )
    assert (run["QLinearConv"], run["QGemm"]) == (3, 1)
    assert run["Cast"] == run["QuantizeLinear"] == run["Transpose"] == 0
    assert run["Gemm"] + run["FusedGemm"] == 2, "both heads stay in float32"


def test_quantisation_refuses_calibration_images_without_paper_or_ink(network: "keras.Sequential", images: Images) -> None:
    from training.quantize import quantize

    with pytest.raises(ValueError, match="lack 0 or 255"):
        quantize(export(network), images // 2)


def test_a_quantised_version_is_published_beside_the_first_and_served(trained: Path, drawn: Dataset) -> None:
    from training import pipeline

    published = pipeline.remake(trained, drawn, "int8")
    assert (published.parent, int(published.name) > int(trained.name)) == (trained.parent, True)
    assert {file.name for file in published.iterdir()} == {"model.onnx", "model.keras", "run.json", "MODEL_CARD.md"}
    first, second = (json.loads((version / "run.json").read_text()) for version in (trained, published))
    assert (first["precision"], second["precision"]) == ("fp32", "int8")
    assert second["temperature"] != first["temperature"], "fitted to the quantised model's logits"
    assert second["verification"]["agreement"] >= 0.9995
    assert (published / "model.onnx").stat().st_size < (trained / "model.onnx").stat().st_size / 3

    served = open_model((published / "model.onnx").read_bytes(), published.name)
    assert (served.predict(drawn.test.images).argmax(axis=1) == drawn.test.labels).mean() == second["test"]["accuracy"]
    metadata = Exported(published / "model.onnx").metadata
    assert (metadata["precision"], metadata["temperature"]) == ("int8", str(second["temperature"]))
    card = (published / "MODEL_CARD.md").read_text()
    assert "8-bit integers" in card
    assert f"Commit {first['commit']} trained the network; " in card
    assert f"from version {trained.name} of this model" in card


def test_a_repeated_export_gives_the_same_model(trained: Path, drawn: Dataset) -> None:
    from training import pipeline

    published = pipeline.remake(trained, drawn, "fp32")
    assert (published / "model.onnx").stat().st_size == pytest.approx((trained / "model.onnx").stat().st_size, abs=2000)
    first, second = (json.loads((version / "run.json").read_text()) for version in (trained, published))
    new = {"made_from", "training_commit", "created", "commit", "verification"}
    assert {name for name in second if second[name] != first.get(name)} <= new
    assert second["made_from"] == trained.name
    again = pipeline.remake(published, drawn, "int8")
    assert json.loads((again / "run.json").read_text())["training_commit"] == first["commit"]


def test_a_version_is_quantised_only_with_its_own_data(
    trained: Path, drawn: Dataset, tmp_path: Path, mnist_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import pipeline

    before = set(trained.parent.iterdir())
    with pytest.raises(DatasetError, match=r"was trained on .*, not on .* as it is now"):
        pipeline.remake(trained, replace(drawn, sha256="other"), "int8")
    with pytest.raises(DatasetError, match=r"held out other images of .*; use the --writers"):
        pipeline.remake(trained, replace(drawn, train=replace(drawn.train, writers=np.arange(800))), "int8")
    assert set(trained.parent.iterdir()) == before
    assert main(["verify", str(trained), "--data", str(mnist_path)]) == 1
    assert f"{trained} was trained on MNIST, not on MNIST as it is now; use the --data" in capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"was trained on MNIST, not on own.npz; use the --data"):
        pipeline.remake(trained, replace(drawn, sha256="other", name="own.npz"), "int8")
    assert main(["quantize", str(tmp_path), "--data", str(mnist_path)]) == 1
    assert "is not a version that `digits-train run` made" in capsys.readouterr().err


def test_a_quantised_file_must_give_the_same_digits_at_its_temperature(
    trained: Path, quantised: Path, images: Images
) -> None:
    network = load_network(trained)
    exported = Exported(quantised)
    assert verify(exported, network, 1.7, images).agreement >= 0.9995
    with pytest.raises(VerificationError, match="0 of 1000 digits differ, probabilities by up to"):
        verify(exported, network, 1.8, images)
    network.layers[-1].bias.assign(-network.layers[-1].bias + np.eye(10)[3] * 500)
    with pytest.raises(VerificationError, match=r"in 8 bits .*% of the digits are equal"):
        verify(exported, network, 1.7, images)


def test_a_quantised_file_must_give_nearly_the_logits_of_its_network(
    trained: Path, quantised: Path, images: Images, tmp_path: Path
) -> None:
    network = load_network(trained)
    exported = Exported(quantised)
    logits, probabilities = exported.answers(images)
    keras_probabilities = softmax(predict_logits(network, images), 1.7)
    verification = verify(exported, network, 1.7, images)
    assert verification.largest_difference == pytest.approx(np.abs(probabilities - keras_probabilities).max(), abs=1e-5)
    assert verification.largest_difference > 1e-4, "the difference is to Keras, not to the file's own logits"

    model = onnx.load(quantised)
    rename_output(model, "logits", "sound")
    model.graph.initializer.append(onnx.helper.make_tensor("three", onnx.TensorProto.FLOAT, [], [3.0]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["sound", "three"], ["logits"]))
    onnx.save(model, tmp_path / "model.onnx")
    np.testing.assert_allclose(Exported(tmp_path / "model.onnx").answers(images)[0], 3 * logits, rtol=1e-4)
    with pytest.raises(VerificationError, match=r"100.00% of the digits are equal .* have an error of 2\d\d\.\d%"):
        verify(Exported(tmp_path / "model.onnx"), network, 1.7 * 3, images)


def test_a_version_with_a_replaced_network_is_not_quantised(trained: Path, drawn: Dataset, tmp_path: Path) -> None:
    from training import pipeline

    version = shutil.copytree(trained, tmp_path / "1")
    network = load_network(version)
    network.layers[-1].bias.assign(network.layers[-1].bias + 0.01 * np.arange(10))
    network.save(version / "model.keras")
    with pytest.raises(VerificationError, match="logits differ from the expected ones"):
        pipeline.remake(version, drawn, "int8")
    (version / "model.keras").write_bytes(b"PK")
    with pytest.raises(VersionError, match=r"model.keras can't be loaded: the file is damaged"):
        pipeline.remake(version, drawn, "int8")
    (version / "model.keras").unlink()
    with pytest.raises(VersionError, match=r"model.keras can't be loaded: the file does not exist"):
        pipeline.remake(version, drawn, "int8")
    assert [file.name for file in tmp_path.iterdir()] == ["1"]
