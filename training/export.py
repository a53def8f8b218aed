"""Exports a Keras network to ONNX under the model contract, which the service checks when it loads a file.

Input `images`: uint8 (N, 28, 28), N dynamic, 0 paper, 255 ink.
Outputs: `logits` float32 (N, 10), and `probabilities` float32 (N, 10), the softmax of the logits over the temperature. In
version 2 of the contract also `whole` float32 (N, 1), the probability that the image shows one whole digit.
Metadata: strings under the names in `metadata`; `contract` is the version of this contract.
"""

import json
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers, ops

CONTRACTS = {10: "1", 11: "2"}  # by the number of outputs of the network
OPSET = 18


class ExportError(Exception):
    """A model can't be exported, or none can in this environment; the message gives the reason."""


def require_exportable() -> None:
    """Raises ExportError unless Keras runs on TensorFlow, because tf2onnx converts TensorFlow graphs only."""
    if keras.backend.backend() != "tensorflow":
        raise ExportError(f"export needs KERAS_BACKEND=tensorflow, got {keras.backend.backend()}")


def metadata(record: dict[str, Any]) -> dict[str, str]:
    """Returns the metadata of a model file from its run record: strings, with lists and tables as JSON."""
    test = record["test"]
    from_held_out = {
        "thresholds": _certified(record["thresholds"]),
        "field_thresholds": {length: _certified(fields["thresholds"]) for length, fields in record["fields"].items()},
        "drift_reference": record["drift_reference"],
        "risk": record["risk"],
    }
    return {
        **({name: json.dumps(value) for name, value in from_held_out.items()} if record["validation_images"] else {}),
        **({"certified_on": record["certified_on"]} if record["validation_images"] else {}),
        **({"whole_threshold": str(record["whole"]["threshold"])} if "whole" in record else {}),
        "labels": json.dumps([str(digit) for digit in range(10)]),
        "test_images": str(test["images"]),
        "test_accuracy": str(test["accuracy"]),
        "test_accuracy_interval": json.dumps(test["interval"]),
        "libraries": json.dumps(record["libraries"]),
        **{
            name: str(record[name])
            for name in ("recipe", "parameters", "seed", "dataset_sha256", "temperature", "precision")
        },
        **{name: record[name] for name in ("commit", "created")},
    }


def _certified(thresholds: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of each certified threshold that the server needs, and those that inform."""
    names = ("threshold", "coverage", "by_writer")
    certified = {error: found for error, found in thresholds.items() if found}
    return {error: {name: found[name] for name in names if found[name] is not None} for error, found in certified.items()}


def export(
    network: keras.Sequential, temperature: float, metadata: dict[str, str], channels_last: bool = False
) -> onnx.ModelProto:
    """Converts `network` (float32 pixels 0 to 255 to logits) to an ONNX model that meets the contract.

    Args:
        network: the trained network.
        temperature: divisor of the logits in `probabilities`.
        metadata: strings to store in the model, without `contract`.
        channels_last: flattens with the channels last, as ONNX Runtime's 8-bit convolutions store them.

    Raises:
        ExportError: see `require_exportable`; or the network doesn't end in logits.
    """
    require_exportable()
    import tensorflow as tf  # only here: the rest of `training` runs on any Keras backend
    import tf2onnx

    trunk, heads = _fold(network, channels_last)

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = ops.reshape(ops.cast(images, "float32"), (-1, 28, 28, 1))
        features = trunk(pixels, training=False)
        logits = heads[0](features)
        answers = {"logits": logits, "probabilities": ops.softmax(logits / temperature)}
        if len(heads) > 1:
            answers["whole"] = ops.sigmoid(heads[1](features))
        return answers

    signature = [tf.TensorSpec((None, 28, 28), tf.uint8, name="images")]
    function = tf.function(answer, input_signature=signature, autograph=False)
    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.helper.set_model_props(model, {"contract": CONTRACTS[network.output_shape[1]], **metadata})
    onnx.checker.check_model(model, full_check=True)
    return model


def _fold(network: keras.Sequential, channels_last: bool) -> tuple[keras.Sequential, list[layers.Dense]]:
    """Rewrites the network so that it converts to few nodes, and to no nodes that only move data.

    - A scaling without an offset is folded into the next weights: convolutions and dense layers are linear.
    - Normalisation and ReLU move before the pooling. The outputs are unchanged if no scale is negative, since then
      max(s a, s b) = s max(a, b).
    - Normalisation is folded into the weights before it, unless an activation lies between.
    - Flatten becomes a reshape to a constant size: Keras' own would compute the batch size in every run. The channels come
      first, which is ONNX' layout, and the next weights are reordered to match, unless `channels_last`.
    - The last layer is split into the heads.

    Returns:
        The network without its last layer, and the heads: the logits of the digits, then that of `whole` if there is one.

    Raises:
        ExportError: the network does not end in a dense layer without an activation.
    """
    stack = [layer for layer in network.layers if not isinstance(layer, layers.Dropout)]
    for index, layer in enumerate(stack):
        after = stack[index + 1 : index + 3]
        if isinstance(layer, layers.MaxPooling2D) and _keeps_order(after):
            stack[index : index + 3] = [*after, layer]

    twins: list[keras.Layer] = []
    weights: list[list[np.ndarray]] = []
    # A scaling and the shape of what is flattened, until the next weights.
    scale, shape = np.float32(1), None
    for index, layer in enumerate(stack):
        match layer:
            case layers.Rescaling() if _scales_weights(layer, stack[index + 1 :]):
                scale = np.float32(layer.scale)
            case layers.BatchNormalization() if twins and _has_linear_weights(twins[-1]):
                twins[-1], weights[-1] = _normalised(twins[-1], weights[-1], layer)
            case layers.Conv2D() | layers.Dense():
                kernel, *bias = layer.get_weights()
                if shape:
                    channels_first = np.arange(np.prod(shape)).reshape(shape).transpose(-1, *range(len(shape) - 1)).ravel()
                    kernel = kernel[channels_first]
                twins.append(layer.from_config(layer.get_config()))
                weights.append([kernel * scale, *bias])
                scale, shape = np.float32(1), None
            case layers.Flatten():
                _, *size = layer.input.shape
                twins.append(_Reshape((int(np.prod(size)),), not channels_last))
                shape = None if channels_last else size
            case layers.Reshape():
                twins.append(_Reshape(layer.target_shape))
            case _:
                twins.append(layer.from_config(layer.get_config()))
                if layer.weights:
                    weights.append(layer.get_weights())
    if not (isinstance(twins[-1], layers.Dense) and _has_linear_weights(twins[-1])):
        raise ExportError("the network must end in a dense layer without an activation, whose outputs are logits")
    trunk = keras.Sequential([keras.Input(network.input_shape[1:]), *twins[:-1]])
    for twin, values in zip([twin for twin in twins[:-1] if twin.weights], weights[:-1], strict=True):
        twin.set_weights(values)
    kernel, *bias = weights[-1]
    heads = []
    for columns in (slice(0, 10), slice(10, 11))[: 1 + (kernel.shape[1] > 10)]:
        head = layers.Dense(kernel[:, columns].shape[1], use_bias=bool(bias))
        head.build(trunk.output_shape)
        head.set_weights([kernel[:, columns], *(values[columns] for values in bias)])
        heads.append(head)
    return trunk, heads


def _scales_weights(scaling: layers.Rescaling, after: list[keras.Layer]) -> bool:
    """Tests if only padding and changes of shape or order lie between a scaling without an offset and the next weights."""
    moves = layers.Flatten | layers.Permute | layers.Reshape | layers.ZeroPadding2D
    following = next((layer for layer in after if not isinstance(layer, moves)), None)
    return not np.any(scaling.offset) and np.ndim(scaling.scale) == 0 and isinstance(following, layers.Conv2D | layers.Dense)


def _has_linear_weights(layer: keras.Layer) -> bool:
    """Tests for a convolution or a dense layer without an activation."""
    return isinstance(layer, layers.Conv2D | layers.Dense) and layer.activation is keras.activations.linear


def _normalised(
    layer: keras.Layer, weights: list[np.ndarray], normalisation: layers.BatchNormalization
) -> tuple[keras.Layer, list[np.ndarray]]:
    """Returns a layer like `layer`, with a bias, and its weights, so that it answers as both layers in turn."""
    kernel, *bias = weights
    gamma, beta, mean, variance = normalisation.get_weights()
    factor = gamma / np.sqrt(variance + normalisation.epsilon)
    shifted = (bias[0] if bias else 0) - mean
    return layer.from_config({**layer.get_config(), "use_bias": True}), [kernel * factor, beta + shifted * factor]


def _keeps_order(after: list[keras.Layer]) -> bool:
    """Tests for a normalisation and a ReLU that may change places with the pooling before them."""
    match after:
        case [layers.BatchNormalization() as normalisation, layers.ReLU()]:
            return bool((np.asarray(normalisation.gamma) > 0).all())
    return False


class _Reshape(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Reshapes each image to a constant size; Keras' own layers would compute the batch size in every run.

    Args:
        shape: of each image.
        channels_first: moves the channels before the rows first, as ONNX stores them.
    """

    def __init__(self, shape: tuple[int, ...], channels_first: bool = False):
        super().__init__()
        self.shape = shape
        self.channels_first = channels_first

    def call(self, values: keras.KerasTensor) -> keras.KerasTensor:
        if self.channels_first:
            values = ops.transpose(values, (0, 3, 1, 2))
        return ops.reshape(values, (-1, *self.shape))
