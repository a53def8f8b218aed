"""Model files that follow the contract and harm the process that loads or runs them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.support.model_files import bundled, place


def publish_hostile(models: Path, version: int, kind: str, name: str = "digits") -> Path:
    """Publishes a version of one kind: crash, hang, memory, external, address, or `rows` followed by a batch size.

    - crash takes the least integer modulo -1, which ends the process with SIGFPE on x86.
    - hang runs a loop of 2**62 rounds.
    - memory asks for eight gigabytes in a run.
    - external takes its weights from another file; address takes them from an address in memory.
    - rows3 returns one row for a batch of three images.
    """
    file = place(models, version, name)
    if kind.startswith("rows"):
        model = _rows(int(kind.removeprefix("rows")))
    else:
        model = {"crash": _crash, "hang": _hang, "memory": _memory}.get(kind, _linear)()
    if kind in ("external", "address"):
        _move_weights(model, "weights.bin" if kind == "external" else "*/_ORT_MEM_ADDR_/*")
        (file.parent / "weights.bin").write_bytes(bytes(784 * 10 * 4))
    onnx.save(model, file.with_name("new"))
    return file.with_name("new").rename(file)


def _linear(extra: Sequence[NodeProto] = (), feed: str = "flat", **constants: np.ndarray) -> onnx.ModelProto:
    """Builds a network of one linear layer on the tensor `feed`, (N, 784), which `extra` nodes may compute from `flat`."""
    weights = np.random.default_rng(0).normal(0, 1e-4, (784, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["levels", "flat_shape"], ["flat"]),
        *extra,
        helper.make_node("MatMul", [feed, "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    held = {"flat_shape": np.array([-1, 784]), "weights": weights, **constants}
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 28, 28])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 10]) for output in ("logits", "probabilities")],
        [numpy_helper.from_array(array, key) for key, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    properties = {entry.key: entry.value for entry in onnx.load(bundled()).metadata_props} | {"contract": "1"}
    helper.set_model_props(model, properties)
    return model


def _crash() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["flat"], ["whole_numbers"], to=TensorProto.INT32),
        helper.make_node("Sub", ["whole_numbers", "whole_numbers"], ["zeros"]),
        helper.make_node("Add", ["zeros", "least"], ["least_numbers"]),
        helper.make_node("Sub", ["zeros", "one"], ["minus_one"]),
        helper.make_node("Mod", ["least_numbers", "minus_one"], ["remainders"]),
        helper.make_node("Cast", ["remainders"], ["divided"], to=TensorProto.FLOAT),
    ]
    return _linear(nodes, "divided", least=np.array(-(2**31), np.int32), one=np.array(1, np.int32))


def _hang() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["again"]), helper.make_node("Add", ["value", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["rounds", "yes", "flat"], ["looped"], body=body)
    return _linear([loop], "looped", rounds=np.array(2**62), yes=np.array(True), one=np.array(1, np.float32))


def _memory() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Shape", ["flat"], ["count"], start=0, end=1),
        helper.make_node("Mul", ["count", "two_to_31"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["flat", "nothing"], ["added"]),
    ]
    return _linear(nodes, "added", two_to_31=np.array([2**31]))


def _rows(size: int) -> onnx.ModelProto:
    """Builds a model that returns one row for a batch of `size` images, and the right number for any other batch."""
    nodes = [
        helper.make_node("Shape", ["images"], ["count"], start=0, end=1),
        helper.make_node("Equal", ["count", "bad_count"], ["is_bad"]),
        helper.make_node("Where", ["is_bad", "one_row", "count"], ["rows"]),
        helper.make_node("Slice", ["flat", "first", "rows", "first"], ["sliced"]),
    ]
    held = {"bad_count": np.array([size]), "one_row": np.array([1]), "first": np.array([0])}
    return _linear(nodes, "sliced", **held)


def _move_weights(model: onnx.ModelProto, location: str) -> None:
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(784 * 10 * 4))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, text
