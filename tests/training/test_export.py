import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from serving.inference.model import open_model
from tests.inference.test_model import negate_logits
from tests.support.model_files import rename_output
from tests.training import names
from training.__main__ import main
from training.calibrate import softmax
from training.dataset import Dataset, DatasetError
from training.evaluate import predict_logits
from training.exported import Exported, VerificationError
from training.verify import Verification
from training.version_directory import VersionError, load_network

if TYPE_CHECKING:
    import keras

Images = NDArray[np.uint8]


def build(name: str, least_scale: float = 0.5) -> "keras.Sequential":
    """An untrained network with biases, averages and scales like those after training; negative scales on request."""
    import keras

    from training import architectures

    network = getattr(architectures, name)()
    random = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            beta, mean = random.normal(0, 0.3, size), random.normal(0, 0.3, size)
            layer.set_weights([random.uniform(least_scale, 1.5, size), beta, mean, random.uniform(0.5, 1.5, size)])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(random.normal(0, 0.1, layer.bias.shape))
    return network


def export(network: "keras.Sequential", temperature: float = 1.7, **metadata: str) -> onnx.ModelProto:
    from training.export import export

    return export(network, temperature, {"precision": "fp32", **metadata})


def verify(exported: Exported, network: "keras.Sequential", temperature: float, images: Images) -> Verification:
    from training.evaluate import predict_heads
    from training.verify import verify

    rounded = exported.metadata["precision"] == "int8"
    return verify(exported, partial(predict_heads, network), temperature, images, rounded)


@pytest.fixture(scope="module")
def network() -> "keras.Sequential":
    import keras

    keras.utils.set_random_seed(1)
    return build("flagship_small")


def optimised(model: onnx.ModelProto, directory: Path) -> Counter[str]:
    """The number of operations of each kind that ONNX Runtime executes after its optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hides the warning that the optimised file suits this machine only
    options.optimized_model_filepath = str(directory / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("least_scale", [0.5, -1.5])
@pytest.mark.parametrize("name", names.RECIPE_OF_NETWORK)
def test_every_network_answers_in_onnx_as_in_keras(name: str, least_scale: float, images: Images, tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(1)
    network = build(name, least_scale)
    onnx.save(export(network), tmp_path / "model.onnx")
    assert verify(Exported(tmp_path / "model.onnx"), network, 1.7, images[:150]).largest_difference < 1e-5


@pytest.mark.parametrize("name", [name for name in names.RECIPE_OF_NETWORK if name not in ("folded", "flagship")])
def test_an_export_has_no_more_nodes_than_one_built_by_hand(name: str, tmp_path: Path) -> None:
    import keras

    network = build(name)
    model = export(network, recipe="none")
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "contract": "1",
        "precision": "fp32",
        "recipe": "none",
    }
    operations = Counter(node.op_type for node in model.graph.node)
    layers = Counter(type(layer).__name__ for layer in network.layers)
    relus = layers["ReLU"] + sum(getattr(layer, "activation", None) is keras.activations.relu for layer in network.layers)
    tanhs = sum(getattr(layer, "activation", None) is keras.activations.tanh for layer in network.layers)
    of_network = {"Conv": layers["Conv2D"], "MatMul": layers["Dense"], "MaxPool": layers["MaxPooling2D"]}
    of_contract = {"Cast": 1, "Reshape": 2 if layers["Conv2D"] else 1, "Softmax": 1}
    operations -= Counter({"Mul": operations["Mul"], "Add": operations["Add"]})  # biases and scales, fused at load time
    assert operations == +Counter({"Relu": relus, "Tanh": tanhs, **of_network, **of_contract})

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    assert len(inferred) == len(model.graph.node) - len(model.graph.output), "all but the outputs"
    for value in inferred:
        batch, *inner = value.type.tensor_type.shape.dim
        assert not batch.dim_value
        assert all(size.dim_value for size in inner), f"{value.name} has a dynamic size"

    run = optimised(model, tmp_path)
    assert not {"Transpose", "BatchNormalization"} & set(run), "folded into the weights"
    assert max(run["Relu"], run["Tanh"]) <= layers["Dense"], "activations of convolutions are fused"
    assert (run["Add"], run["Mul"], run["MatMul"]) == (0, 1, 0), "the last Mul is the temperature"
    reorders = run["ReorderInput"] + run["ReorderOutput"]
    narrow = name in ("cnn8", "lenet5")  # fewer filters than ONNX Runtime's block of channels
    assert reorders <= bool(layers["Conv2D"]) + narrow


def test_verification_detects_another_network_or_temperature(
    network: "keras.Sequential", images: Images, tmp_path: Path
) -> None:
    import keras

    onnx.save(export(network), tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="0 of 1000 digits differ, probabilities by up to"):
        verify(Exported(tmp_path / "model.onnx"), network, 1.8, images)
    other = keras.models.clone_model(network)
    with pytest.raises(VerificationError, match="digits differ"):
        verify(Exported(tmp_path / "model.onnx"), other, 1.7, images)


def test_verification_compares_the_logits_too(network: "keras.Sequential", images: Images, tmp_path: Path) -> None:
    model = export(network)
    negate_logits(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="logits differ"):
        verify(Exported(tmp_path / "model.onnx"), network, 1.7, images)


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


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_network_of_two_heads_is_exported_under_contract_2(precision: str, images: Images, tmp_path: Path) -> None:
    from training.evaluate import predict_heads
    from training.quantize import quantize

    network = build("folded")
    model = export(network, precision=precision)
    file = tmp_path / "model.onnx"
    onnx.save(quantize(model, np.concatenate([images, 255 - images])) if precision == "int8" else model, file)
    exported = Exported(file)
    assert exported.metadata["contract"] == "2"
    logits, whole = predict_heads(network, images)
    answered, _, answered_whole = exported.outputs(images)
    assert whole is not None
    assert answered_whole is not None
    if precision == "fp32":
        np.testing.assert_allclose(answered, logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(answered_whole, whole, atol=1e-5)
        verify(exported, network, 1.7, images)
        network.layers[-1].bias.assign(np.asarray(network.layers[-1].bias) + np.eye(11)[10])
        with pytest.raises(VerificationError, match="`whole` differs"):
            verify(exported, network, 1.7, images)
    else:
        assert np.abs(answered_whole - whole).max() < 0.2


def test_an_export_of_two_heads_has_few_nodes() -> None:
    operations = Counter(node.op_type for node in export(build("folded")).graph.node)
    operations -= Counter({"Mul": operations["Mul"], "Add": operations["Add"]})  # biases and scales, fused at load time
    heads = {"MatMul": 3, "Softmax": 1, "Sigmoid": 1}
    assert operations == Counter({"Cast": 1, "Reshape": 2, "Transpose": 1, "Conv": 3, "Relu": 4, **heads})


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

    served = open_model(published / "model.onnx", published.name)
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
    with pytest.raises(DatasetError, match="was trained on other data"):
        pipeline.remake(trained, replace(drawn, sha256="other"), "int8")
    with pytest.raises(DatasetError, match="or held out other images; use the --data and --writers"):
        pipeline.remake(trained, replace(drawn, train=replace(drawn.train, writers=np.arange(800))), "int8")
    assert set(trained.parent.iterdir()) == before
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
