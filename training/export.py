"""Keras to ONNX: the model contract, written once here and checked by the service when it loads a file.

Input `images`: uint8 (N, 28, 28), N dynamic, 0 paper, 255 ink.
Outputs `logits` float32 (N, 10) and `probabilities` float32 (N, 10): softmax of logits over the temperature.
Metadata: strings, under the names that `pipeline.py` gives them; `contract` is the version of all this.
"""

import keras
import numpy as np
import onnx
from keras import ops

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
    """The same network in a form that converts to few nodes.

    The scaling of the pixels goes into the first weights (a convolution and a dense layer are both linear), and Flatten
    becomes a reshape to a size known beforehand: as Keras writes it, ONNX would work the batch size out anew in each run.
    """

    def clone(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.Flatten):
            return _Reshape(layer)
        if isinstance(layer, keras.layers.Rescaling):
            return keras.layers.Identity()
        return layer.from_config(layer.get_config())

    twin = keras.models.clone_model(network, clone_function=clone)
    twin.set_weights(network.get_weights())
    first = next(layer for layer in twin.layers if layer.weights)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Rescaling):
            first.kernel.assign(first.kernel * np.float32(layer.scale))
    return twin


class _Reshape(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """A Flatten whose output size is a constant of the graph."""

    def __init__(self, flatten: keras.layers.Flatten):
        super().__init__(name=flatten.name)
        self.size = flatten.output.shape[-1]

    def call(self, values: keras.KerasTensor) -> keras.KerasTensor:
        return ops.reshape(values, (-1, self.size))
