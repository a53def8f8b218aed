from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving.inference.classifier import Classifier
from serving.inference.external_data import refuse_external_data
from serving.inference.metadata import ModelError
from serving.inference.model import open_model
from serving.repository import versions
from tests.support.hostile_models import publish_hostile
from tests.support.model_files import bundled as bundled_file
from tests.support.model_files import rename_output, set_properties


def change(bundled: versions.ModelVersion, onto: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    """Edits the bundled model and writes it to `onto`."""
    model = onnx.load(bundled.path)
    edit(model)
    onnx.save(model, onto)
    return onto


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
    """Subtracts the mean image of the batch from each image, as a network left in training mode would."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["normalised" if name == "images" else name for name in node.input]
    graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [1], [0]))
    first = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["levels", "mean"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Cast", ["distance"], ["normalised"], to=TensorProto.UINT8),
    ]
    for index, node in enumerate(first):
        graph.node.insert(index, node)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda model: set_properties(model, contract=None), "lack contract"),
        (lambda model: set_properties(model, test_accuracy=None), "lack test_accuracy"),
        (lambda model: set_properties(model, contract="99"), "where this server knows the versions 1, 2"),
        (lambda model: set_properties(model, test_accuracy="high"), "test_accuracy is 'high', expected a share"),
        (lambda model: set_properties(model, test_accuracy="nan"), "test_accuracy is 'nan'"),
        (lambda model: set_properties(model, labels="[]"), "with labels"),
        (lambda model: set_properties(model, recipe="a\nb"), r"its recipe is 'a\\nb', expected at most 64 printable"),
        (lambda model: set_properties(model, precision="x" * 65), "its precision is 'xxx"),
        (lambda model: set_properties(model, comment="x" * 70_000), r"its metadata are \d+ properties of \d+ characters"),
        (lambda model: set_properties(model, thresholds="[" * 20_000), "its thresholds are"),
        (lambda model: set_properties(model, field_thresholds='{"1001": {}}'), "not for lengths from 1 to 1000"),
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
        open_model(change(bundled, tmp_path / "model.onnx", edit).read_bytes(), "1")


def test_a_truncated_model_file_is_refused(bundled: versions.ModelVersion) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_model(bundled.path.read_bytes()[:10_000], "1")


def test_external_data_is_found_and_any_cut_of_a_file_is_survived(tmp_path: Path) -> None:
    refuse_external_data(bundled_file().read_bytes())
    content = publish_hostile(tmp_path, 1, "external").read_bytes()
    with pytest.raises(ModelError, match="it has external data"):
        refuse_external_data(content)
    for end in range(0, len(content), 7):
        with suppress(ModelError):
            refuse_external_data(content[:end])


@pytest.mark.parametrize(
    ("filler", "shown"), [("x", "xxx"), ("\U000e0001", r"\U000e0001"), ("\n", r"\n\n"), ("\u202e", r"\u202e")]
)
def test_a_message_about_a_file_is_one_short_line(filler: str, shown: str) -> None:
    message = str(ModelError("contract", f"is \x1b[31m bad\n{filler * 10_000}"))
    assert message.startswith(rf"is \x1b[31m bad\n{shown}")
    assert len(message) <= 400
    assert message.isprintable()
    assert str(ModelError("contract", message)) == message, "the message from another process is shown whole"


@pytest.mark.parametrize("length", [300, 400])
def test_a_message_of_up_to_400_characters_is_shown_whole(length: int) -> None:
    assert str(ModelError("contract", "é" * length)) == "é" * length


def test_the_bundled_model_states_its_recipe_accuracy_and_version(model: Classifier, bundled: versions.ModelVersion) -> None:
    assert model.metadata.recipe == "folded"
    assert model.metadata.test_accuracy >= 0.996
    assert model.version == str(bundled.number)


class FakeSession:
    """Replaces a session of ONNX Runtime on a provider that this machine may lack. Batches above `limit` fail."""

    def __init__(self, provider: str, limit: int):
        self._provider, self._limit = provider, limit
        self.sizes: list[int] = []

    def get_providers(self) -> list[str]:
        return [self._provider]

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.sizes.append(len(inputs["images"]))
        if self.sizes[-1] > self._limit:
            raise RuntimeError("out of memory")
        return [np.zeros((self.sizes[-1], 1 if name == "whole" else 10), np.float32) for name in names]


@pytest.mark.parametrize(
    ("provider", "max_batch_size", "sizes"),
    [
        ("CPUExecutionProvider", 1, {1}),
        ("CPUExecutionProvider", 64, {1, 2, 4, 8, 16, 32, 64}),
        ("CPUExecutionProvider", 100, {1, 2, 4, 8, 16, 32, 64, 100}),
        ("CUDAExecutionProvider", 100, {*range(1, 101)}),
    ],
)
def test_warm_up_runs_the_batch_sizes_of_the_provider_or_reports_a_failure(
    bundled: versions.ModelVersion, provider: str, max_batch_size: int, sizes: set[int]
) -> None:
    model = open_model(bundled.path.read_bytes(), "1")
    session = model._session = FakeSession(provider, max_batch_size)
    model.warm_up(max_batch_size)
    assert set(session.sizes) == sizes
    model._session = FakeSession(provider, max_batch_size - 1)
    with pytest.raises(ModelError, match=f"fails on a batch of {max_batch_size}: out of memory"):
        model.warm_up(max_batch_size)


def test_an_answer_does_not_depend_on_the_batch_around_it(model: Classifier, images: np.ndarray) -> None:
    batch = model.predict(images[:200])
    singles = np.concatenate([model.predict(images[index : index + 1]) for index in range(200)])
    np.testing.assert_allclose(batch, singles, atol=1e-5)
