from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.inference.test_model import negate_logits
from tests.support.networks import build, export, optimised, verify
from tests.training import names
from training.exported import Exported, VerificationError

if TYPE_CHECKING:
    import keras

Images = NDArray[np.uint8]


@pytest.mark.parametrize("least_scale", [0.5, -1.5])
@pytest.mark.parametrize("name", names.RECIPE_OF_NETWORK)
def test_every_network_answers_in_onnx_as_in_keras(name: str, least_scale: float, images: Images, tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(1)
    network = build(name, least_scale)
    onnx.save(export(network), tmp_path / "model.onnx")
    assert verify(Exported(tmp_path / "model.onnx"), network, 1.7, images[:150]).largest_difference < 1e-5


@pytest.mark.parametrize("name", [name for name in names.RECIPE_OF_NETWORK if name not in ("folded", "flagship_whole")])
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
