"""Joins two exported models into one ONNX file."""

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper, parser

LEAST = 0.5  # weight of the first stage where it is least sure: the mean of both beats the second stage alone
RAMP = 0.9  # the weight falls to LEAST as the confidence falls towards this share of the threshold

# The first stage reads all images. `first_answers` are its calibrated log-probabilities, the last of them that of `whole`.
_BEFORE = """
scaled = Div(first_logits, first_temperature)
first_digits = LogSoftmax<axis = 1>(scaled)
most_probable = ReduceMax<keepdims = 1>(first_digits, columns)
confidence = Exp(most_probable)
below = Less(confidence, threshold)
unsure = Squeeze(below, columns)
first_floor = Max(first_whole, tiny)
first_log_whole = Log(first_floor)
first_answers = Concat<axis = 1>(first_digits, first_log_whole)
counted = Cast<to = 6>(unsure)
most = ReduceMax<keepdims = 0>(counted)
any = Cast<to = 9>(most)
"""

# The second stage reads the unsure images, and the weighted means of both stages' answers replace the first stage's.
_UNSURE_IMAGES = "second_images = Compress<axis = 0>(images, unsure)"
_AFTER = """
second_scaled = Div(second_logits, second_temperature)
second_digits = LogSoftmax<axis = 1>(second_scaled)
second_floor = Max(second_whole, tiny)
second_log_whole = Log(second_floor)
second_answers = Concat<axis = 1>(second_digits, second_log_whole)
unsure_confidence = Compress<axis = 0>(confidence, unsure)
above_low = Sub(unsure_confidence, low)
share = Mul(above_low, inverse_span)
weight = Clip(share, least, one)
unsure_answers = Compress<axis = 0>(first_answers, unsure)
difference = Sub(unsure_answers, second_answers)
weighted = Mul(weight, difference)
mean = Add(second_answers, weighted)
places = NonZero(unsure)
rows = Transpose<perm = [1, 0]>(places)
replaced = ScatterND(first_answers, rows, mean)
"""

_OUTPUTS = """
logits, log_whole = Split<axis = 1>(answers, sizes)
tempered = Div(logits, temperature)
probabilities = Softmax<axis = 1>(tempered)
likely = Exp(log_whole)
whole = Min(likely, one)
"""


def join(
    first: onnx.ModelProto, second: onnx.ModelProto, threshold: float, temperature: float, metadata: dict[str, str]
) -> onnx.ModelProto:
    """Joins two models of contract 2 into one of contract 2. An answer depends on its image alone, never on the batch.

    Images of which the first stage is less sure than `threshold` also go through the second stage. Their answers are
    weighted means of both stages' log-probabilities. The weight of the first stage is 1 at the threshold, so that no answer
    jumps when rounding carries a confidence over it. The second stage stands in a branch that a batch without unsure images
    skips.

    Quantise the models before: the quantiser leaves a branch in float32.

    Args:
        first: the fast model.
        second: the model for unsure images.
        threshold: calibrated confidence of the first stage below which an image goes on.
        temperature: divisor of the joined logits, which are log-probabilities.
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
        "tiny": 1e-30,
        "temperature": temperature,
        **{f"{name}_temperature": _temperature(model) for name, model in stages.items()},
    }
    answers = helper.make_tensor_value_info("answers", onnx.TensorProto.FLOAT, ["N", 11])
    unsure = helper.make_graph(
        [*_nodes(_UNSURE_IMAGES), *graphs["second"].node, *_nodes(_AFTER), *_nodes("answers = Identity(replaced)")],
        *("unsure", [], [answers]),
        initializer=graphs["second"].initializer,
    )
    sure = helper.make_graph(_nodes("answers = Identity(first_answers)"), "sure", [], [answers])
    branch = helper.make_node("If", ["any"], ["answers"], then_branch=unsure, else_branch=sure)
    graph = helper.make_graph(
        [*graphs["first"].node, *_nodes(_BEFORE), branch, *_nodes(_OUTPUTS)],
        "cascade",
        first.graph.input,
        first.graph.output,
        initializer=[
            *graphs["first"].initializer,
            *(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array([1]), "columns"),
            numpy_helper.from_array(np.array([10, 1]), "sizes"),
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
