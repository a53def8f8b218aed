"""Keras to ONNX: the model contract, written once here and checked by the service when it loads a file.

Input `images`: uint8 (N, 28, 28), N dynamic, 0 paper, 255 ink.
Outputs `logits` float32 (N, 10) and `probabilities` float32 (N, 10): softmax of logits over the temperature.
Metadata: strings, under the names that `pipeline.py` gives them; `contract` is the version of all this.
"""

import keras
import numpy as np
import onnx
from keras import layers, ops

CONTRACT = "1"
OPSET = 18


class ExportError(Exception):
    """No model can be exported here; the message says why."""


def require_exportable() -> None:
    """Raises ExportError unless Keras runs on TensorFlow, which tf2onnx reads its graphs from."""
    if keras.backend.backend() != "tensorflow":
        raise ExportError(f"export needs KERAS_BACKEND=tensorflow, and this is {keras.backend.backend()}")


def export(network: keras.Sequential, temperature: float, metadata: dict[str, str]) -> onnx.ModelProto:
    """Turns `network` (float32 pixels 0 to 255 in, logits out) into an ONNX model that meets the contract.

    Raises:
        ExportError: as `require_exportable` does.
    """
    require_exportable()
    import tensorflow as tf  # only here: everything else in `training` runs on any Keras backend
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
    """The same network in a form that converts to few nodes and none that moves data about.

    - The scaling of the pixels goes into the first weights: a convolution and a dense layer are both linear.
    - Normalisation and relu come before pooling, where ONNX Runtime makes them part of the convolution. The answers are the
      same as long as no scale is negative, for then max(s a, s b) = s max(a, b).
    - Flatten becomes a reshape to a size known beforehand, with the channels first, as ONNX keeps them, and the next
      weights in that order: as Keras writes it, ONNX would work out the batch size and turn each image round in each run.
    """
    stack = [layer for layer in network.layers if not isinstance(layer, layers.Dropout)]
    for place, layer in enumerate(stack):
        after = stack[place + 1 : place + 3]
        if isinstance(layer, layers.MaxPooling2D) and _keeps_order(after):
            stack[place : place + 3] = [*after, layer]

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
    """Whether these are a normalisation and a relu that may change places with the pooling before them."""
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
    """A Flatten of (N, height, width, channels) to (N, channels * height * width), a constant of the graph."""

    def call(self, values: keras.KerasTensor) -> keras.KerasTensor:
        return ops.reshape(ops.transpose(values, (0, 3, 1, 2)), (-1, int(np.prod(values.shape[1:]))))
