"""Keras to ONNX: the model contract, written once here and checked by the service when it loads a file.

Input `images`: uint8 (N, 28, 28), N dynamic, 0 paper, 255 ink.
Outputs `logits` float32 (N, 10) and `probabilities` float32 (N, 10): softmax of logits over the temperature.
Metadata: strings, under the names that `pipeline.py` gives them; `contract` is the version of all this.

The graph is written layer by layer, as one would by hand. Converters such as tf2onnx know many more layers, but they leave
normalisation behind a pooling layer as it is, and need TensorFlow, where Keras may run on another backend.
"""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers
from onnx import TensorProto, helper, numpy_helper

CONTRACT = "1"
OPSET = 18

_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh"}


class ExportError(Exception):
    """The network has a layer that can't be exported; the message names it."""


@dataclass
class _Step:
    """One operation on what the step before it gives; its constants are float64 until they are written."""

    operation: str
    constants: list[np.ndarray] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


def export(network: keras.Sequential, temperature: float, metadata: dict[str, str]) -> onnx.ModelProto:
    """Turns `network` (float32 pixels 0 to 255 in, logits out) into an ONNX model that meets the contract.

    Raises:
        ExportError: a layer of the network has no translation here.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    value = "images"

    def append(operation: str, *operands: np.ndarray, output: str, **attributes: Any) -> None:
        nonlocal value
        names = [f"{output}.{place}" for place in range(len(operands))]
        constants.extend(map(numpy_helper.from_array, operands, names))
        nodes.append(helper.make_node(operation, [value, *names], [output], output, **attributes))
        value = output

    append("Cast", output="pixels", to=TensorProto.FLOAT)
    append("Unsqueeze", np.array([1]), output="planes")  # (N, 1, 28, 28)
    steps = _steps(network)
    outputs = [f"{step.operation.lower()}_{place}" for place, step in enumerate(steps[:-1])] + ["logits"]
    for step, output in zip(steps, outputs, strict=True):
        operands = [constant.astype(np.float32) for constant in step.constants]
        append(step.operation, *operands, output=output, **step.attributes)
    append("Mul", np.array(1 / temperature, np.float32), output="calibrated")
    append("Softmax", output="probabilities", axis=-1)

    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 28, 28])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 10]) for name in ("logits", "probabilities")],
        constants,
    )
    opset = helper.make_operatorsetid("", OPSET)
    oldest = helper.find_min_ir_version_for([opset])  # older ONNX Runtimes refuse the newest form
    model = helper.make_model(graph, opset_imports=[opset], ir_version=oldest, producer_name="digits-train")
    helper.set_model_props(model, {"contract": CONTRACT, **metadata})
    onnx.checker.check_model(model, full_check=True)
    return model


def _steps(network: keras.Sequential) -> list[_Step]:
    """The operations on planes of pixels, (N, 1, 28, 28) float32, that come to `network`.

    What is linear is folded into the weights beside it: the scaling of the pixels into the first ones, normalisation into
    those before it. As max(s a, s b) is s max(a, b) for s > 0, that reaches across a pooling layer unless a scale is
    negative; then normalisation stays, and ONNX Runtime makes a convolution of it with one weight a channel.
    """
    steps: list[_Step] = []
    factor = 1.0
    order: Any = slice(None)  # of a dense layer's inputs: where Flatten puts them, channels last in Keras and first in ONNX
    for layer in network.layers:
        match layer:
            case layers.Dropout():
                pass
            case layers.Rescaling(offset=0) if not steps:
                factor = layer.scale
            case layers.Conv2D(groups=1, dilation_rate=(1, 1)):
                kernel = np.asarray(layer.kernel, np.float64).transpose(3, 2, 0, 1) * factor
                steps += [_Step("Conv", [kernel, _bias(layer)], _window(layer)), *_activation(layer)]
                factor = 1.0
            case layers.MaxPooling2D():
                steps.append(_Step("MaxPool", [], {"kernel_shape": layer.pool_size, **_window(layer)}))
            case layers.Flatten():
                order = np.arange(layer.output.shape[-1]).reshape(layer.input.shape[1:]).transpose(2, 0, 1).ravel()
                steps.append(_Step("Flatten"))
            case layers.Dense():
                steps += [
                    _Step("Gemm", [np.asarray(layer.kernel, np.float64)[order] * factor, _bias(layer)]),
                    *_activation(layer),
                ]
                factor, order = 1.0, slice(None)
            case layers.ReLU(negative_slope=0, threshold=0, max_value=None):
                # Before pooling it comes to the same and becomes part of the convolution: a fifth less time in 8 bits.
                steps.insert(len(steps) - (steps[-1].operation == "MaxPool"), _Step("Relu"))
            case layers.BatchNormalization(scale=True, center=True):
                _normalise(steps, layer)
            case _:
                raise ExportError(f"{layer.name} can't be exported: no ONNX is known for {layer.get_config()}")
    return steps


def _normalise(steps: list[_Step], layer: keras.layers.BatchNormalization) -> None:
    """Folds a normalisation into the weights before it, or appends it."""
    gamma, beta, mean, variance = (np.asarray(weights, np.float64) for weights in layer.get_weights())
    scale = gamma / np.sqrt(variance + layer.epsilon)
    pooled = steps[-1].operation == "MaxPool" and (scale > 0).all()
    before = steps[-2 if pooled else -1]
    match before.operation:
        case "Conv":
            kernel, bias = before.constants
            before.constants = [kernel * scale.reshape(-1, 1, 1, 1), (bias - mean) * scale + beta]
        case "Gemm":
            kernel, bias = before.constants
            before.constants = [kernel * scale, (bias - mean) * scale + beta]
        case _:
            steps.append(_Step("BatchNormalization", [gamma, beta, mean, variance], {"epsilon": layer.epsilon}))


def _bias(layer: keras.layers.Conv2D | keras.layers.Dense) -> np.ndarray:
    return np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(layer.kernel.shape[-1])


def _activation(layer: keras.layers.Conv2D | keras.layers.Dense) -> list[_Step]:
    name = keras.activations.serialize(layer.activation)
    if name == "linear":
        return []
    if name not in _ACTIVATIONS:
        raise ExportError(f"{layer.name} can't be exported: no ONNX is known for the activation {name}")
    return [_Step(_ACTIVATIONS[name])]


def _window(layer: keras.layers.Conv2D | keras.layers.MaxPooling2D) -> dict[str, Any]:
    return {"strides": layer.strides, "auto_pad": {"valid": "VALID", "same": "SAME_UPPER"}[layer.padding]}
