"""Untrained networks like trained ones, their export, and what ONNX Runtime makes of it."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from training.exported import Exported
from training.verify import Verification

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


def optimised(model: onnx.ModelProto, directory: Path) -> Counter[str]:
    """The number of operations of each kind that ONNX Runtime executes after its optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hides the warning that the optimised file suits this machine only
    options.optimized_model_filepath = str(directory / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
