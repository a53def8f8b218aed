from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving.inference.metadata import ModelError
from serving.inference.model import Model
from serving.repository import versions
from tests.support.model_files import rename_output


def change(bundled: versions.ModelVersion, onto: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """Writes the bundled model, edited, to `onto`."""
    model = onnx.load(bundled.path)
    edit(model)
    onnx.save(model, onto)
    return onto


def set_metadata(model: onnx.ModelProto, name: str, value: str | None) -> None:
    """Changes one entry, or drops it."""
    entries = {entry.key: entry.value for entry in model.metadata_props} | {name: value}
    helper.set_model_props(model, {key: text for key, text in entries.items() if text is not None})


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]


def fix_batch_size(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8


def answer_logits_as_probabilities(model: onnx.ModelProto) -> None:
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Identity"
    del softmax.attribute[:]


def negate_logits(model: onnx.ModelProto) -> None:
    rename_output(model, "logits", "sound")
    model.graph.node.append(helper.make_node("Neg", ["sound"], ["logits"]))


def normalise_over_the_batch(model: onnx.ModelProto) -> None:
    """Subtracts the batch's mean picture from each, as a network left in training mode would."""
    graph = model.graph
    cast = next(node for node in graph.node if node.op_type == "Cast")
    raw, cast.output[0] = cast.output[0], "levels"
    graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [1], [0]))
    place = list(graph.node).index(cast) + 1
    graph.node.insert(place, helper.make_node("ReduceMean", ["levels", "axis"], ["mean"], keepdims=1))
    graph.node.insert(place + 1, helper.make_node("Sub", ["levels", "mean"], [raw]))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda model: set_metadata(model, "contract", None), "lack contract"),
        (lambda model: set_metadata(model, "test_accuracy", None), "lack test_accuracy"),
        (lambda model: set_metadata(model, "contract", "99"), "where this server knows version '1'"),
        (lambda model: set_metadata(model, "test_accuracy", "high"), "test_accuracy is 'high', expected a share"),
        (lambda model: set_metadata(model, "test_accuracy", "nan"), "test_accuracy is 'nan'"),
        (lambda model: set_metadata(model, "labels", "[]"), "with labels"),
        (negate_logits, "name different digits"),
        (rename_input, r"its inputs are \{'pixels'"),
        (fix_batch_size, r"its inputs are .*\[8, 28, 28\]"),
        (lambda model: model.graph.output.pop(), "its outputs are"),
        (answer_logits_as_probabilities, "not ten numbers that sum to 1"),
        (normalise_over_the_batch, "depends on the batch"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused_with_the_reason(
    bundled: versions.ModelVersion, tmp_path: Path, edit: Callable[[onnx.ModelProto], object], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        Model(change(bundled, tmp_path / "model.onnx", edit), "1")


def test_a_truncated_file_is_refused(bundled: versions.ModelVersion, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(bundled.path.read_bytes()[:10_000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        Model(file, "1")


def test_the_bundled_model_says_what_it_is(model: Model, bundled: versions.ModelVersion) -> None:
    assert model.metadata.recipe == "flagship"
    assert model.metadata.test_accuracy >= 0.996
    assert model.version == str(bundled.number)


class _Session:
    """Stands for ONNX Runtime's, on a GPU that is not here; fails on batches above `limit`."""

    def __init__(self, provider: str, limit: int):
        self._provider, self._limit = provider, limit
        self.sizes: list[int] = []

    def get_providers(self) -> list[str]:
        return [self._provider]

    def run(self, _: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.sizes.append(len(inputs["images"]))
        if self.sizes[-1] > self._limit:
            raise RuntimeError("out of memory")
        return [np.zeros((self.sizes[-1], 10), np.float32)] * 2


@pytest.mark.parametrize(
    ("provider", "most", "sizes"),
    [
        ("CPUExecutionProvider", 1, {1}),
        ("CPUExecutionProvider", 64, {1, 2, 4, 8, 16, 32, 64}),
        ("CPUExecutionProvider", 100, {1, 2, 4, 8, 16, 32, 64, 100}),
        ("CUDAExecutionProvider", 100, {*range(1, 101)}),
    ],
)
def test_warming_up_runs_enough_sizes_and_tells_of_one_that_fails(
    bundled: versions.ModelVersion, provider: str, most: int, sizes: set[int]
) -> None:
    model = Model(bundled.path, "1")
    session = model._session = _Session(provider, most)
    model.warm_up(most)
    assert set(session.sizes) == sizes
    model._session = _Session(provider, most - 1)
    with pytest.raises(ModelError, match=f"fails on a batch of {most}: out of memory"):
        model.warm_up(most)


def test_an_answer_does_not_depend_on_the_batch_around_it(model: Model, images: np.ndarray) -> None:
    batch = model.predict(images[:200])
    singles = np.concatenate([model.predict(images[n : n + 1]) for n in range(200)])
    np.testing.assert_allclose(batch, singles, atol=1e-5)


def test_the_highest_version_is_the_one_served(tmp_path: Path) -> None:
    for name in ("9", "10", "2", "draft", ".tmp"):
        file = tmp_path / "digits" / name / "model.onnx"
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "digits" / "11").mkdir()  # still without its file
    assert versions.latest(tmp_path).number == 10
