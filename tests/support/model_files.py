"""Model files for the tests: copies of the bundled model, unchanged or with a fault."""

import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from serving.repository import versions
from serving.settings import BUNDLED


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
    model.graph.initializer.append(helper.make_tensor("before", TensorProto.INT64, [10], [(n - 1) % 10 for n in range(10)]))
    for output in ("logits", "probabilities"):
        rename_output(model, output, f"true_{output}")
        model.graph.node.append(helper.make_node("Gather", [f"true_{output}", "before"], [output], axis=1))
    file = place(models, version)
    onnx.save(model, file)
    return file


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
