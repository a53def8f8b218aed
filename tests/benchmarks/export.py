"""Measures the speed of exported models in ONNX Runtime on one core, as the service runs them: `make bench-export`.

The first comparison is `convnet` as exported against the same network built by hand for one batch size. The second compares
our own networks in 8 bits with 32 bits, and the third `folded` with the other two in 8 bits. In each round, both models of
a pair take turns. The clock is the thread's CPU time, which other load on the machine hardly affects. The result is the
median of the rounds' ratios.

The networks are untrained, because speed does not depend on the weights. `digits-train quantize` measures the effect of 8
bits on the accuracy of each version. The speed of a cascade does depend on them, and on the images: `--cascade VERSION`
compares a trained cascade with its first stage on MNIST's test images instead.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.support.drawings import draw_many
from training import architectures
from training.export import OPSET, export
from training.quantize import quantize
from training.sources import load_dataset
from training.version_directory import read_record

BATCH_SIZES = (1, 32, 128)
BURST = 0.02  # seconds that one model runs in one round


def by_hand(network: keras.Sequential, batch_size: int) -> onnx.ModelProto:
    """Builds `convnet` for a single batch size: channels first, every size static, dense layers as Gemm."""
    kernels = [np.asarray(layer.kernel) for layer in network.layers if layer.weights]
    biases = [np.asarray(layer.bias) for layer in network.layers if layer.weights]
    for index in (0, 1, 2):
        kernels[index] = kernels[index].transpose(3, 2, 0, 1)
    kernels[0] = kernels[0] / 255
    kernels[3] = kernels[3].reshape(3, 3, 64, 64).transpose(2, 0, 1, 3).reshape(576, 64)
    constants = {f"w{index}": kernel for index, kernel in enumerate(kernels)}
    constants |= {f"b{index}": bias for index, bias in enumerate(biases)}
    constants |= {"planes": np.array([batch_size, 1, 28, 28]), "features": np.array([batch_size, 576])}
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "planes"], ["x"]),
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("MaxPool", ["r0"], ["p0"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p0", "w1", "b1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Reshape", ["r2", "features"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["d3"]),
        helper.make_node("Relu", ["d3"], ["r3"]),
        helper.make_node("Gemm", ["r3", "w4", "b4"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch_size, 28, 28])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch_size, 10]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(constant, name) for name, constant in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_operatorsetid("", OPSET)], ir_version=8)


def race(
    first: onnx.ModelProto, second: onnx.ModelProto, batch_size: int, rounds: int, images: np.ndarray | None = None
) -> tuple[float, float]:
    """Compares two models.

    Args:
        first: one model.
        second: the other model.
        batch_size: images per run.
        rounds: number of measurements of each model.
        images: (N, 28, 28) uint8, all of which go through both models in each round; None repeats one batch of drawings.

    Returns:
        Median CPU microseconds per image of `second`, and the median speed of `second` relative to `first`.
    """
    sessions = [_session(model) for model in (first, second)]
    if images is None:
        drawn, _ = draw_many(batch_size, seed=0)
        batches = [drawn] * max(1, round(BURST / min(_cost(session, [drawn]) for session in sessions * 3)))
    else:
        batches = [images[start : start + batch_size] for start in range(0, len(images) - batch_size + 1, batch_size)]
    costs: list[list[float]] = [[], []]
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 else (1, 0):
            costs[index].append(_cost(sessions[index], batches))
    ratio = statistics.median(a / b for a, b in zip(*costs, strict=True))
    return statistics.median(costs[1]) / batch_size * 1e6, ratio


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _cost(session: onnxruntime.InferenceSession, batches: list[np.ndarray]) -> float:
    """Returns CPU seconds per run."""
    start = time.thread_time()
    for images in batches:
        session.run(None, {"images": images})
    return (time.thread_time() - start) / len(batches)


def _race_cascade(version: Path, rounds: int) -> None:
    """Prints the rows that compare a cascade with its first stage, on MNIST's test images."""
    record, models = read_record(version), version.resolve().parent.parent
    stage = record["cascade"]["stages"][0]
    first = onnx.load(models / stage["model"] / stage["version"] / "model.onnx")
    images = load_dataset(os.environ.get("DIGITS_DATA"), None, False).test.images
    for batch_size in BATCH_SIZES:
        cost, ratio = race(first, onnx.load(version / "model.onnx"), batch_size, rounds, images)
        print(f"| {record['recipe']} | {stage['recipe']} | {batch_size} | {cost:.1f} | {ratio:.2f} |", flush=True)


def _race_networks(rounds: int) -> None:
    """Prints the rows of the untrained networks."""
    images, _ = draw_many(1000, seed=1)
    in_8_bits = {}
    for name in ("convnet", "flagship_small", "flagship", "folded"):
        network = getattr(architectures, name)()
        exported = export(network, 1.0, {})
        for batch_size in BATCH_SIZES if name == "convnet" else ():
            cost, ratio = race(by_hand(network, batch_size), exported, batch_size, rounds)
            print(f"| {name}, exported | built by hand | {batch_size} | {cost:.1f} | {ratio:.2f} |", flush=True)
        integers = in_8_bits[name] = quantize(export(network, 1.0, {}, channels_last=True), images)
        for batch_size in BATCH_SIZES:
            cost, ratio = race(exported, integers, batch_size, rounds)
            print(f"| {name}, 8 bits | 32 bits | {batch_size} | {cost:.1f} | {ratio:.2f} |", flush=True)
    for name in ("flagship_small", "flagship"):
        for batch_size in BATCH_SIZES:
            cost, ratio = race(in_8_bits[name], in_8_bits["folded"], batch_size, rounds)
            print(f"| folded, 8 bits | {name}, 8 bits | {batch_size} | {cost:.1f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Measures all pairs and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41, help="rounds per pair of models (default: %(default)s)")
    parser.add_argument("--cascade", type=Path, metavar="VERSION", help="compare this cascade with its first stage")
    options = parser.parse_args()
    print(f"Medians of {options.rounds} rounds on one core of {os.cpu_count()}.\n")
    print("| model | compared with | batch | us per image | relative speed |")
    print("|---|---|---:|---:|---:|")
    if options.cascade:
        _race_cascade(options.cascade, options.rounds)
    else:
        _race_networks(options.rounds)


if __name__ == "__main__":
    main()
