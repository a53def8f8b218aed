"""One ONNX Runtime session, and the contract that its file must meet."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving import contract
from serving.answers.decision import choose
from serving.inference.metadata import ModelError, broken, field_thresholds, reference, share, thresholds
from serving.settings import Provider

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Model:
    """A model version, loaded, checked and ready.

    `infer` may be called from several threads at once: each call runs in its caller's own thread, one core a call.

    Attributes:
        version: the version's number, as a decimal string.
        recipe: the training recipe that made it.
        test_accuracy: share of the MNIST test images it reads right, as its metadata states.
        precision: of its arithmetic, fp32 or int8, as its metadata state; "" where they say nothing.
        thresholds: of a digit's confidence, that its training has certified; none where its metadata state none.
        field_thresholds: of a field's, by its length; likewise.
        drift_reference: shares of the images held out from its training, by feature and bin; likewise.
    """

    def __init__(self, path: Path, version: str, provider: Provider = "cpu"):
        """Loads the ONNX file at `path`, checks it against the contract, and runs it once.

        Raises:
            ModelError: with the reason, when any of that fails. The path is not in it: a caller may be told.
        """
        self.version = version
        try:
            self._check(path, provider)
        except ModelError:
            raise
        except Exception as error:  # ONNX Runtime's own exceptions share no base class, and a broken file can raise any
            raise ModelError("unreadable", f"cannot be loaded: {str(error).replace(str(path), path.name)}") from error

    def _check(self, path: Path, provider: Provider) -> None:
        """Loads the file, holds it to the contract, and runs it."""
        self._session = _load(path, _PROVIDERS[provider])
        _require("inputs", contract.INPUTS, self._session.get_inputs())
        _require("outputs", contract.OUTPUTS, self._session.get_outputs())
        metadata = self._session.get_modelmeta().custom_metadata_map
        missing = {"contract", "labels", "recipe", "test_accuracy"} - set(metadata)
        if missing:
            raise broken(f"its metadata lack {', '.join(sorted(missing))}")
        if metadata["contract"] != contract.VERSION or metadata["labels"] != json.dumps(contract.LABELS):
            raise broken(
                f"version {metadata['contract']!r} with labels {metadata['labels']}, "
                f"where this server knows version {contract.VERSION!r} with labels {json.dumps(contract.LABELS)}"
            )
        self.recipe, self.test_accuracy = metadata["recipe"], share(metadata["test_accuracy"])
        self.precision = metadata.get("precision", "")
        try:
            self.thresholds = thresholds(metadata.get("thresholds", "{}"))
            self.field_thresholds = field_thresholds(metadata.get("field_thresholds", "{}"))
        except ValueError as error:
            raise broken(f"its thresholds are {error}") from error
        try:
            self.drift_reference = reference(metadata["drift_reference"]) if "drift_reference" in metadata else {}
        except ValueError as error:
            raise broken(f"its drift_reference is {error}") from error
        self._self_check()

    def lack_of_certificate(self, target_error_rate: float) -> str:
        """What to say of it where it has no certified threshold for that error rate; "" where it has one."""
        if choose(self.thresholds, target_error_rate):
            return ""
        return f"has no certified threshold for an error rate of {target_error_rate:g}: it accepts no digit"

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network says of `images`, (N, 28, 28) uint8, 0 paper, 255 ink.

        Returns:
            (N, 20) float32: the logits of the ten digits, then their probabilities.
        """
        outputs: list[NDArray[np.float32]] = self._session.run(["logits", "probabilities"], {"images": images})
        return np.concatenate(outputs, axis=1)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of the ten digits, (N, 10) float32, for `images`, (N, 28, 28) uint8, 0 paper, 255 ink."""
        return self.infer(images)[:, 10:]

    def warm_up(self, max_batch_size: int) -> None:
        """Runs batches of 1, 2, 4 and so on up to `max_batch_size`, or of every size on a GPU, which tunes for each anew.

        On a CPU, the first run at a size in between takes no longer than the next ones.

        Raises:
            ModelError: one of them fails.
        """
        if self._session.get_providers()[0] == _PROVIDERS["cuda"]:
            sizes = [*range(1, max_batch_size + 1)]
        else:
            sizes = [*(2**power for power in range(max_batch_size.bit_length())), max_batch_size]
        for size in sizes:
            try:
                self.infer(np.zeros((size, 28, 28), np.uint8))
            except Exception as error:  # ONNX Runtime's own exceptions share no base class
                raise ModelError("self_check", f"fails on a batch of {size}: {error}") from error

    def _self_check(self) -> None:
        """Refuses a model whose answers contradict each other."""
        images = np.random.default_rng(0).integers(0, 256, (32, 28, 28), np.uint8)
        try:
            logits, batch = np.split(self.infer(images), 2, axis=1)
            single = self.predict(images[:1])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise ModelError("self_check", f"fails its self-check: {error}") from error
        if batch.shape != (32, 10) or not np.allclose(batch.sum(axis=1), 1, atol=1e-4) or not (batch >= 0).all():
            raise ModelError("self_check", "fails its self-check: `probabilities` are not ten numbers that sum to 1")
        if (logits.argmax(axis=1) != batch.argmax(axis=1)).any():
            raise ModelError("self_check", "fails its self-check: `logits` and `probabilities` name different digits")
        if not np.allclose(batch[:1], single, atol=1e-4):
            raise ModelError("self_check", "fails its self-check: an image's answer depends on the batch it is in")


def _load(path: Path, provider: str) -> onnxruntime.InferenceSession:
    if provider not in onnxruntime.get_available_providers():
        raise ModelError(
            "unreadable",
            "the CUDA provider needs onnxruntime-gpu in place of onnxruntime (`make install-gpu`); "
            f"the ONNX Runtime installed here has {', '.join(onnxruntime.get_available_providers())}",
        )
    options = onnxruntime.SessionOptions()
    # One core a run, in the thread that calls: the batcher brings as many threads as there are cores to use.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if provider == "CUDAExecutionProvider":
        onnxruntime.preload_dlls()  # the CUDA libraries that come as Python packages
    # Without enable_fallback=0, a GPU that fails later on would be replaced by the CPU in silence.
    session = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=0)
    # ONNX Runtime goes on without a provider that fails to start; an operator who asked for a GPU must hear of it.
    if session.get_providers()[0] != provider:
        raise ModelError(
            "unreadable", f"{provider} did not start: is there a GPU with its driver? (ONNX Runtime's log above says more)"
        )
    return session


def _require(what: str, expected: dict[str, tuple[str, list[int | None]]], found: list[object]) -> None:
    """Raises ModelError unless `found` has just the `expected` names, types and shapes; None stands for any batch size."""
    seen = {
        node.name: (node.type, [size if isinstance(size, int) else None for size in node.shape])  # type: ignore[attr-defined]
        for node in found
    }
    if seen != expected:
        raise broken(f"its {what} are {seen}, expected {expected}")
