"""Model files for the tests: copies of the bundled model, unchanged or with a fault."""

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from serving.repository import versions
from serving.settings import BUNDLED

SPECK = np.pad(np.full((3, 3), 255, np.uint8), ((12, 13), (12, 13)))
"""An image with ink, (28, 28) uint8, which is no digit to the models of `publish_whole`."""


def bundled() -> Path:
    return versions.latest(BUNDLED).path


def place(models: Path, version: int, name: str = "digits") -> Path:
    """Creates the directory of a version; returns the path for its model file."""
    file = models / name / str(version) / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def publish(models: Path, version: int, name: str = "digits") -> Path:
    """Publishes the bundled model as a version, by an atomic rename."""
    file = place(models, version, name)
    shutil.copyfile(bundled(), file.with_name("new"))
    return file.with_name("new").rename(file)


def publish_shifted(models: Path, version: int) -> Path:
    """Publishes a valid version that takes every digit for the next one."""
    model = onnx.load(bundled())
    _shift(model)
    file = place(models, version)
    onnx.save(model, file)
    return file


def _shift(model: onnx.ModelProto) -> None:
    """Gives each digit the answer of the digit before."""
    model.graph.initializer.append(helper.make_tensor("before", TensorProto.INT64, [10], [(n - 1) % 10 for n in range(10)]))
    for output in ("logits", "probabilities"):
        rename_output(model, output, f"true_{output}")
        model.graph.node.append(helper.make_node("Gather", [f"true_{output}", "before"], [output], axis=1))


def publish_contract_1(models: Path, version: int, name: str = "digits") -> Path:
    """Publishes the bundled model with contract 1, without `whole`."""
    file = place(models, version, name)
    onnx.save(_contract_1(), file)
    return file


def publish_whole(
    models: Path, version: int, *, threshold: str = "0.5", broken: str = "", name: str = "digits", shifted: bool = False
) -> Path:
    """Publishes the bundled model with contract 2 and a rule in place of a trained `whole`.

    The rule looks at the mean level of an image: `whole` is 0.9 from 5 to 128, as of every drawn digit, and 0.1 outside. An
    image of a few dots, such as SPECK, and an image full of ink are no digits.

    Args:
        models: model repository.
        version: version number.
        threshold: property whole_threshold.
        broken: "range" makes `whole` ten times as large; "batch" adds up the levels of all images of a batch.
        name: name of the model.
        shifted: the version takes every digit for the next one.
    """
    model = _contract_1()
    graph = model.graph
    if shifted:
        _shift(model)
    factor, high = 10.0 if broken == "range" else 1.0, 400.0 if broken == "batch" else 128.0
    graph.initializer.extend(
        [
            helper.make_tensor("rule_pixels", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("rule_batch", TensorProto.INT64, [1], [0]),
            helper.make_tensor("rule_column", TensorProto.INT64, [1], [1]),
            helper.make_tensor("rule_low", TensorProto.FLOAT, [], [5.0]),
            helper.make_tensor("rule_high", TensorProto.FLOAT, [], [high]),
            helper.make_tensor("rule_yes", TensorProto.FLOAT, [], [0.9 * factor]),
            helper.make_tensor("rule_no", TensorProto.FLOAT, [], [0.1]),
        ]
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["rule_levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["rule_levels", "rule_pixels"], ["rule_own_mean"], keepdims=0),
        helper.make_node("ReduceSum", ["rule_own_mean", "rule_batch"], ["rule_batch_sum"], keepdims=1),
        helper.make_node("Add", ["rule_own_mean", "rule_batch_sum"], ["rule_shifted"]),
        helper.make_node("Identity", ["rule_shifted" if broken == "batch" else "rule_own_mean"], ["rule_mean"]),
        helper.make_node("GreaterOrEqual", ["rule_mean", "rule_low"], ["rule_enough"]),
        helper.make_node("LessOrEqual", ["rule_mean", "rule_high"], ["rule_not_too_much"]),
        helper.make_node("And", ["rule_enough", "rule_not_too_much"], ["rule_within"]),
        helper.make_node("Where", ["rule_within", "rule_yes", "rule_no"], ["rule_row"]),
        helper.make_node("Unsqueeze", ["rule_row", "rule_column"], ["whole"]),
    ]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info("whole", TensorProto.FLOAT, ["batch", 1]))
    set_properties(model, contract="2", whole_threshold=threshold)
    file = place(models, version, name)
    onnx.save(model, file)
    return file


def _contract_1() -> onnx.ModelProto:
    """Loads the bundled model, without `whole` if it has one. The nodes that computed `whole` stay and are unused."""
    model = onnx.load(bundled())
    outputs = [output for output in model.graph.output if output.name != "whole"]
    if len(outputs) < len(model.graph.output):
        rename_output(model, "whole", "trained_whole")
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    set_properties(model, contract="1", whole_threshold=None)
    return model


def set_properties(model: onnx.ModelProto, **changes: str | None) -> None:
    """Changes properties of the metadata; None drops a property."""
    properties = {entry.key: entry.value for entry in model.metadata_props} | changes
    helper.set_model_props(model, {key: text for key, text in properties.items() if text is not None})


def publish_breakable(models: Path, version: int) -> Path:
    """Publishes a version that fails inside ONNX Runtime on every run that contains an all-white image."""
    # `one` has one element, so index 1 is out of bounds.
    return _publish_with_factor(models, version, [helper.make_node("Gather", ["one", "white"], ["factor"])])


def publish_unsound(models: Path, version: int) -> Path:
    """Publishes a version that returns NaN, without an error, for an all-white image."""
    nodes = [
        helper.make_node("Cast", ["white"], ["white_number"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "white_number"], ["sound"]),
        helper.make_node("Div", ["sound", "sound"], ["factor"]),  # 0 / 0
    ]
    return _publish_with_factor(models, version, nodes)


def _publish_with_factor(models: Path, version: int, nodes: list[onnx.NodeProto]) -> Path:
    """Publishes a version that multiplies its probabilities by a factor per image.

    Args:
        models: model repository.
        version: version number.
        nodes: compute `factor`, (N,) float, from `white`, (N,) int64, which is 1 for an all-white image.
    """
    model = onnx.load(bundled())
    rename_output(model, "probabilities", "true_probabilities")
    model.graph.initializer.extend(
        [
            helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("nearly_white", TensorProto.FLOAT, [], [254.5]),
            helper.make_tensor("pixels", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", ["levels", "pixels"], ["darkest"], keepdims=0),
            helper.make_node("Greater", ["darkest", "nearly_white"], ["is_white"]),
            helper.make_node("Cast", ["is_white"], ["white"], to=TensorProto.INT64),
            *nodes,
            helper.make_node("Unsqueeze", ["factor", "last"], ["column"]),
            helper.make_node("Mul", ["true_probabilities", "column"], ["probabilities"]),
        ]
    )
    file = place(models, version)
    onnx.save(model, file)
    return file


def rename_output(model: onnx.ModelProto, name: str, to: str) -> None:
    """Renames a tensor in every node, so that a new node can produce the graph's output of the old name."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, used in enumerate(names):
                if used == name:
                    names[index] = to
