"""Quantises an exported model to 8-bit integers: a smaller model that runs faster on a CPU with nearly equal outputs.

Static quantisation in QDQ form: QuantizeLinear and DequantizeLinear surround each operation, and ONNX Runtime fuses them
into integer arithmetic. Dynamic quantisation has no such convolutions and is many times slower than float32.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

_INTEGER = ["Conv", "Relu", "MaxPool", "Reshape", "Gemm"]
_BATCH = 100


def quantize(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Converts an exported model to 8-bit integers. Its metadata stay as they are, temperature included.

    - Weights are signed and symmetric about 0, with one scale per filter.
    - Activations are unsigned; their scale and zero point cover the range that `images` produce. Pixels keep their values
      0 to 255.
    - The last layer stays float32: its cost is negligible, and the confidences depend on it.
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
        last = next(node.name for node in onnx.load(ready).graph.node if "logits" in node.output)
        quantize_static(
            ready,
            file,
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_INTEGER,
            nodes_to_exclude=[last],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantized = onnx.load(file)
    helper.set_model_props(quantized, metadata)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Feeds images to the range calibration, one batch at a time."""

    def __init__(self, images: np.ndarray):
        self._batches: Iterator[np.ndarray] = iter([images[n : n + _BATCH] for n in range(0, len(images), _BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch, or None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}
