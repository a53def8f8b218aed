"""Quantises an exported model to 8-bit integers: a smaller model that runs faster on a CPU with nearly equal outputs.

Static quantisation in QDQ form: QuantizeLinear and DequantizeLinear surround each operation, and ONNX Runtime fuses them
into integer arithmetic. Dynamic quantisation has no such convolutions and is many times slower than float32.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

_INTEGER = ["Conv", "Relu", "MaxPool", "Reshape", "Gemm"]
_BATCH = 100


def quantize(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Converts an exported model to 8-bit integers. Its metadata stay as they are, temperature included.

    - Weights are signed and symmetric about 0, with one scale per filter.
    - Activations are unsigned; their scale and zero point cover the range that `images` produce. Pixels keep their values
      0 to 255.
    - The heads stay float32: their cost is negligible, and the confidences depend on them.
    - The pixels of the input are the integers of the first operation.
    - Weights are limited to 7 bits. x86 CPUs without VNNI sum products of 8 by 8 bits in 16 bits, which can overflow.

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    arXiv 1712.05877.

    Args:
        model: float32 model with input `images`.
        images: (N, 28, 28) uint8 training images for range calibration; a thousand suffice.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    with tempfile.TemporaryDirectory() as scratch:
        file, ready = Path(scratch) / "model.onnx", Path(scratch) / "ready.onnx"
        onnx.save(model, file)
        quant_pre_process(file, ready, skip_symbolic_shape=True)  # applies the fusions that float32 models get too
        heads = _find_heads(onnx.load(ready))
        quantize_static(
            ready,
            file,
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_INTEGER,
            nodes_to_exclude=heads,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantized = _feed_pixels_directly(onnx.load(file))
    helper.set_model_props(quantized, metadata)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _find_heads(model: onnx.ModelProto) -> list[str]:
    """Returns the names of the last layers: all nodes from the last Gemm or MatMul to an output."""
    producers = {output: node for node in model.graph.node for output in node.output}
    heads, waiting = [], [output.name for output in model.graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in heads:
            heads.append(node.name)
            if node.op_type not in ("Gemm", "MatMul"):
                waiting += node.input
    return heads


def _feed_pixels_directly(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the way of the pixels through float32, from Cast to QuantizeLinear: a pixel's 8-bit value is the pixel.

    Raises:
        ValueError: the calibration found another range of pixels than 0 to 255.
    """
    graph = model.graph
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    cast = next(node for node in graph.node if list(node.input) == ["images"])
    moved, last = [], cast
    while (after := [node for node in graph.node if last.output[0] in node.input])[0].op_type in ("Reshape", "Transpose"):
        last = after[0]
        moved.append(last)
    quantise = after[0]
    if cast.op_type != "Cast" or quantise.op_type != "QuantizeLinear" or len(after) > 1:
        raise ValueError(f"the pixels go through {cast.op_type} to {quantise.op_type}, expected Cast to QuantizeLinear")
    scale, zero = (constants[name] for name in quantise.input[1:])
    if not np.isclose(scale, 1, atol=1e-6) or zero != 0:
        raise ValueError(f"pixels have scale {scale} and zero point {zero}: the images for calibration lack 0 or 255")
    source = "images"
    for node in moved:
        node.input[0], source = source, node.output[0]
    for node in graph.node:
        node.input[:] = [source if name == quantise.output[0] else name for name in node.input]
    graph.node.remove(cast)
    graph.node.remove(quantise)
    del graph.value_info[:]
    return model


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Feeds images to the range calibration, one batch at a time."""

    def __init__(self, images: np.ndarray):
        self._batches: Iterator[np.ndarray] = iter([images[n : n + _BATCH] for n in range(0, len(images), _BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch, or None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}
