"""ONNX files that keep the contract on paper, and crash, hang, grow, refer elsewhere or tell lies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support.model_files import bundled, set_properties

_OPSET = 17
_IR_VERSION = 9


def _constant(name: str, values: object, dtype: type) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def network(
    extra: Sequence[NodeProto] = (),
    constants: Sequence[TensorProto] = (),
    last: str = "flat",
    rows: Sequence[NodeProto] = (),
) -> onnx.ModelProto:
    """Builds a network of one layer that has the metadata of the bundled one.

    Args:
        extra: nodes between the pixels, `flat` (N, 784) float32, and the layer.
        constants: of these nodes.
        last: the tensor that the layer takes.
        rows: nodes after the layer, from `raw` to `logits`; empty for none.
    """
    weights = np.random.default_rng(0).normal(0, 1e-4, (784, 10))
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["levels", "shape"], ["flat"]),
        *extra,
        helper.make_node("MatMul", [last, "weights"], ["raw" if rows else "logits"]),
        *rows,
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 28, 28])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 10]) for name in ("logits", "probabilities")],
        [_constant("shape", [-1, 784], np.int64), _constant("weights", weights, np.float32), *constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    source = onnx.load(bundled(), load_external_data=False)
    helper.set_model_props(model, {entry.key: entry.value for entry in source.metadata_props})
    set_properties(model, contract="1", whole_threshold=None)
    return model


def endless() -> onnx.ModelProto:
    """A network that runs a loop of 2^62 turns."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes"]), helper.make_node("Mul", ["state", "one"], ["next"])],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 784]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 784]),
        ],
        [_constant("one", 1.0, np.float32)],
    )
    loop = helper.make_node("Loop", ["turns", "yes", "flat"], ["looped"], body=body)
    return network([loop], [_constant("turns", 1 << 62, np.int64), _constant("yes", True, np.bool_)], "looped")


def crashing() -> onnx.ModelProto:
    """A network that divides the lowest 32-bit integer by -1, which ends a process on x86-64 with SIGFPE."""
    nodes = [
        helper.make_node("Cast", ["flat"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Mul", ["whole", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "lowest"], ["all_lowest"]),
        helper.make_node("Mod", ["all_lowest", "minus_one"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["rest_levels"], to=TensorProto.FLOAT),
    ]
    constants = [
        _constant(name, [value], np.int32) for name, value in (("zero", 0), ("lowest", -(2**31)), ("minus_one", -1))
    ]
    return network(nodes, constants, "rest_levels")


def growing(gigabytes: float) -> onnx.ModelProto:
    """A network that fills so much memory in each run, from a file of a few kilobytes."""
    nodes = [
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("ReduceMean", ["mean"], ["one"], axes=[0], keepdims=1),
        helper.make_node("Expand", ["one", "size"], ["large"]),
        helper.make_node("Exp", ["large"], ["larger"]),
        helper.make_node("ReduceMax", ["larger"], ["most"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["most", "nothing"], ["added"]),
        helper.make_node("Add", ["flat", "added"], ["grown"]),
    ]
    floats = int(gigabytes * 1e9 / 4 / 2)
    return network(nodes, [_constant("size", [1, floats], np.int64), _constant("nothing", [0.0], np.float32)], "grown")


def external(location: str) -> onnx.ModelProto:
    """A network whose weights lie in another file."""
    model = network()
    weights = next(one for one in model.graph.initializer if one.name == "weights")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(784 * 10 * 4))):
        weights.external_data.add(key=key, value=value)
    return model


def of_other_rows() -> onnx.ModelProto:
    """A network that answers every batch with one row less, and lone images as the contract says."""
    rows = [
        helper.make_node("Shape", ["raw"], ["raw_shape"]),
        helper.make_node("Slice", ["raw_shape", "first", "second"], ["count"]),
        helper.make_node("Sub", ["count", "second"], ["less"]),
        helper.make_node("Max", ["less", "second"], ["end"]),
        helper.make_node("Slice", ["raw", "first", "end", "first"], ["logits"]),
    ]
    return network(constants=[_constant("first", [0], np.int64), _constant("second", [1], np.int64)], rows=rows)


def unknown_operation() -> onnx.ModelProto:
    """A network with an operation that only another library has."""
    return network([helper.make_node("Evil", ["flat"], ["evil"], domain="com.example")], last="evil")


def with_property(key: str, value: str) -> onnx.ModelProto:
    """The bundled network with a property of its metadata changed."""
    model = onnx.load(bundled())
    set_properties(model, **{key: value})
    return model


def place(models: Path, version: int, content: onnx.ModelProto | bytes) -> Path:
    """Publishes a file as a version that appears at once."""
    directory = models / "digits" / str(version)
    directory.mkdir(parents=True)
    encoded = content if isinstance(content, bytes) else content.SerializeToString()
    (directory / "new").write_bytes(encoded)
    (directory / "new").rename(directory / "model.onnx")
    return directory
