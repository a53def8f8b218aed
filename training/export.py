"""Exports a Keras network to ONNX under the model contract, which the service checks when it loads a file.

Input `images`: uint8 (N, 28, 28), N dynamic, 0 paper, 255 ink.
Outputs: `logits` float32 (N, 10), and `probabilities` float32 (N, 10), the softmax of the logits over the temperature.
Metadata: strings under the names in `metadata`; `contract` is the version of this contract.
"""

import json
from typing import Any

import keras
import numpy as np
import onnx
from keras import layers, ops

CONTRACT = "1"
OPSET = 18


class ExportError(Exception):
    """Models can't be exported in this environment; the message gives the reason."""


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


def export(network: keras.Sequential, temperature: float, metadata: dict[str, str]) -> onnx.ModelProto:
    """Converts `network` (float32 pixels 0 to 255 to logits) to an ONNX model that meets the contract.

    Args:
        network: the trained network.
        temperature: divisor of the logits in `probabilities`.
        metadata: strings to store in the model, without `contract`.

    Raises:
        ExportError: see `require_exportable`.
    """
    require_exportable()
    import tensorflow as tf  # only here: the rest of `training` runs on any Keras backend
    import tf2onnx

    folded = _folded(network)

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = ops.reshape(ops.cast(images, "float32"), (-1, 28, 28, 1))
        logits = folded(pixels, training=False)
        return {"logits": logits, "probabilities": ops.softmax(logits / temperature)}

    signature = [tf.TensorSpec((None, 28, 28), tf.uint8, name="images")]
    function = tf.function(answer, input_signature=signature, autograph=False)
    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.helper.set_model_props(model, {"contract": CONTRACT, **metadata})
    onnx.checker.check_model(model, full_check=True)
    return model


def _folded(network: keras.Sequential) -> keras.Sequential:
    """Rewrites the network so that it converts to few nodes, and to no nodes that only move data.

    - The scaling of the pixels is folded into the first weights: convolutions and dense layers are linear.
    - Normalisation and ReLU move before the pooling, where ONNX Runtime fuses them into the convolution. The outputs are
      unchanged if no scale is negative, since then max(s a, s b) = s max(a, b).
    - Flatten becomes a reshape to a constant size with the channels first, which is ONNX' layout, and the next weights are
      reordered to match. Keras' own Flatten would compute the batch size and transpose each image in every run.
    """
    stack = [layer for layer in network.layers if not isinstance(layer, layers.Dropout)]
    for index, layer in enumerate(stack):
        after = stack[index + 1 : index + 3]
        if isinstance(layer, layers.MaxPooling2D) and _keeps_order(after):
            stack[index : index + 3] = [*after, layer]

    twin = keras.Sequential([keras.Input(network.input_shape[1:]), *map(_twin, stack)])
    for layer, its_twin in zip(stack, twin.layers, strict=True):
        its_twin.set_weights(layer.get_weights())
    weighted = [layer for layer in twin.layers if layer.weights]
    for layer in network.layers:
        if isinstance(layer, layers.Rescaling):
            weighted[0].kernel.assign(weighted[0].kernel * np.float32(layer.scale))
        if isinstance(layer, layers.Flatten):
            _, *shape = layer.input.shape
            channels_first = np.arange(np.prod(shape)).reshape(shape).transpose(-1, *range(len(shape) - 1)).ravel()
            dense = next(layer for layer in weighted if isinstance(layer, layers.Dense))
            dense.kernel.assign(np.asarray(dense.kernel)[channels_first])
    return twin


def _keeps_order(after: list[keras.Layer]) -> bool:
    """Tests for a normalisation and a ReLU that may change places with the pooling before them."""
    match after:
        case [layers.BatchNormalization() as normalisation, layers.ReLU()]:
            return bool((np.asarray(normalisation.gamma) > 0).all())
    return False


def _twin(layer: keras.Layer) -> keras.Layer:
    if isinstance(layer, layers.Flatten):
        return _ChannelsFirst()
    if isinstance(layer, layers.Rescaling):
        return layers.Identity()
    return layer.from_config(layer.get_config())


class _ChannelsFirst(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Flattens (N, height, width, channels) to (N, channels * height * width); the size is a constant of the graph."""

    def call(self, values: keras.KerasTensor) -> keras.KerasTensor:
        return ops.reshape(ops.transpose(values, (0, 3, 1, 2)), (-1, int(np.prod(values.shape[1:]))))
