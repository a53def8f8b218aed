"""Joins two exported models into one ONNX file."""

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper, parser

LEAST = 0.5  # weight of the first stage where it is least sure: the mean of both beats the second stage alone
RAMP = 0.9  # the weight falls to LEAST as the confidence falls towards this share of the threshold

# The first stage reads all images.
_BEFORE = """
first_scaled = Div(first_logits, first_temperature)
confidence = ReduceMax<keepdims = 1>(first_probabilities, columns)
lowest = ReduceMin<keepdims = 0>(confidence)
any = Less(lowest, threshold)
"""

# The second stage reads the unsure images. Weighted means of both stages' logits replace the first stage's logits. Their
# softmax is the geometric mean of the probabilities.
_UNSURE_IMAGES = """
below = Less(confidence, threshold)
unsure = Squeeze(below, columns)
second_images = Compress<axis = 0>(images, unsure)
"""
_MEAN = """
unsure_confidence = Compress<axis = 0>(confidence, unsure)
above_low = Sub(unsure_confidence, low)
share = Mul(above_low, inverse_span)
weight = Clip(share, least, one)
places = NonZero(unsure)
rows = Transpose<perm = [1, 0]>(places)
second_scaled = Div(second_logits, second_temperature)
unsure_scaled = Compress<axis = 0>(first_scaled, unsure)
difference = Sub(unsure_scaled, second_scaled)
weighted = Mul(weight, difference)
mean = Add(second_scaled, weighted)
logits = ScatterND(first_scaled, rows, mean)
"""
_MEAN_OF_WHOLE = """
unsure_whole = Compress<axis = 0>(first_whole, unsure)
rest = Sub(one, weight)
part = Pow(unsure_whole, weight)
second_part = Pow(second_whole, rest)
mean_whole = Mul(part, second_part)
whole = ScatterND(first_whole, rows, mean_whole)
"""
_WHOLE_OF_FIRST = "whole = Identity(first_whole)"

_OUTPUTS = """
tempered = Div(logits, temperature)
probabilities = Softmax<axis = 1>(tempered)
"""


def join(
    first: onnx.ModelProto, second: onnx.ModelProto, threshold: float, temperature: float, metadata: dict[str, str]
) -> onnx.ModelProto:
    """Joins two models into one of contract 2. An answer depends on its image alone, never on the batch.

    Images of which the first stage is less sure than `threshold` also go through the second stage. Their answers are
    weighted geometric means of both stages' probabilities. The weight of the first stage is 1 at the threshold, so that no
    answer jumps when rounding carries a confidence over it. The second stage stands in a branch that a batch without
    unsure images skips. Without an output `whole` in the second stage, the joined `whole` is that of the first.

    Quantise the models before: the quantiser leaves a branch in float32.

    Args:
        first: the fast model, of contract 2.
        second: the model for unsure images, of contract 1 or 2.
        threshold: calibrated confidence of the first stage below which an image goes on.
        temperature: divisor of the joined logits.
        metadata: strings to store in the model, without `contract`.
    """
    stages = {"first": first, "second": second}
    graphs = {
        # Input and outputs of both stages have the same names, and both may name inner values alike.
        name: compose.add_prefix_graph(model.graph, f"{name}_", rename_inputs=name == "second")
        for name, model in stages.items()
    }
    constants = {
        "threshold": threshold,
        "low": RAMP * threshold,
        "inverse_span": 1 / (threshold - RAMP * threshold),
        "least": LEAST,
        "one": 1,
        "temperature": temperature,
        **{f"{name}_temperature": _temperature(model) for name, model in stages.items()},
    }
    second_judges = "second_whole" in {output.name for output in graphs["second"].output}
    outputs = [
        helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 10]),
        helper.make_tensor_value_info("whole", onnx.TensorProto.FLOAT, ["N", 1]),
    ]
    whole = _nodes(_MEAN_OF_WHOLE if second_judges else _WHOLE_OF_FIRST)
    unsure = helper.make_graph(
        [*_nodes(_UNSURE_IMAGES), *graphs["second"].node, *_nodes(_MEAN), *whole],
        *("unsure", [], outputs),
        initializer=graphs["second"].initializer,
    )
    sure = helper.make_graph(_nodes("logits = Identity(first_scaled)\n" + _WHOLE_OF_FIRST), "sure", [], outputs)
    branch = helper.make_node("If", ["any"], ["logits", "whole"], then_branch=unsure, else_branch=sure)
    graph = helper.make_graph(
        [*graphs["first"].node, *_nodes(_BEFORE), branch, *_nodes(_OUTPUTS)],
        "cascade",
        first.graph.input,
        first.graph.output,
        initializer=[
            *graphs["first"].initializer,
            *(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array([1]), "columns"),
        ],
    )
    opsets = {opset.domain: opset for model in stages.values() for opset in model.opset_import}
    version = max(model.ir_version for model in stages.values())
    joined = helper.make_model(graph, opset_imports=opsets.values(), ir_version=version)
    helper.set_model_props(joined, {**metadata, "contract": "2"})
    onnx.checker.check_model(joined, full_check=True)
    return joined


def _nodes(lines: str) -> list[onnx.NodeProto]:
    return [parser.parse_node(line) for line in lines.strip().splitlines()]


def _temperature(model: onnx.ModelProto) -> float:
    return float(next(entry.value for entry in model.metadata_props if entry.key == "temperature"))
