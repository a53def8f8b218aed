"""Opens an ONNX file and checks it against the model contract before anything is served from it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from serving import contract
from serving.inference.classifier import LOGITS, PROBABILITIES, PROVIDERS, WHOLE, Classifier
from serving.inference.metadata import ENVIRONMENT, ModelError, ModelMetadata, breach

if TYPE_CHECKING:  # the settings would double the time to import this module, which the quarantine pays for each new file
    from serving.settings import Provider

# Batches of each size up to this are tried, and around every power of two above.
_SMALL_BATCHES = 16


def open_model(content: bytes, version: str, provider: "Provider" = "cpu") -> Classifier:
    """Opens an ONNX file, checks it against the contract, and runs it once.

    Args:
        content: the content of the file.
        version: the version number, a decimal string.
        provider: hardware that runs the model.

    Raises:
        ModelError: any of this fails.
    """
    try:
        session = _open_session(content, PROVIDERS[provider])
        metadata = ModelMetadata.parse(session.get_modelmeta().custom_metadata_map)
        _require("inputs", contract.INPUTS, session.get_inputs())
        _require("outputs", contract.OUTPUTS[metadata.contract], session.get_outputs())
        classifier = Classifier(session, version, metadata)
        _self_check(classifier)
        return classifier
    except ModelError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions share no base class, and a broken file can raise any
        raise ModelError("unreadable", f"cannot be loaded: {error}") from error


def try_batches(classifier: Classifier, max_batch_size: int) -> None:
    """Runs batches of many sizes, and compares each answer with the answer in another batch.

    Raises:
        ModelError: a run fails, returns other shapes than the contract states, or gives an image another answer.
    """
    images = np.random.default_rng(1).integers(0, 256, (_SMALL_BATCHES, 28, 28), np.uint8)
    powers = [2**power for power in range(max_batch_size.bit_length())]
    sizes = {*range(1, _SMALL_BATCHES), *(size + step for size in powers for step in (-1, 0, 1)), max_batch_size}
    expected = None
    for size in sorted(size for size in sizes if 0 < size <= max_batch_size):
        try:
            answers = classifier.infer(np.resize(images, (size, 28, 28)))[:_SMALL_BATCHES, PROBABILITIES.start :]
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise ModelError("self_check", f"fails on a batch of {size}: {error}") from error
        # Loose, because a GPU chooses its arithmetic by the size.
        if expected is not None and not np.allclose(answers[: len(expected)], expected[: len(answers)], atol=1e-2):
            raise ModelError("self_check", f"gives other answers in a batch of {size} than in a smaller one")
        expected = answers


def _self_check(classifier: Classifier) -> None:
    """Refuses a model whose outputs contradict each other."""
    images = np.random.default_rng(0).integers(0, 256, (32, 28, 28), np.uint8)
    try:
        outputs = classifier.infer(images)
        single = classifier.infer(images[:1])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ModelError("self_check", f"fails its self-check: {error}") from error
    logits, batch = outputs[:, LOGITS], outputs[:, PROBABILITIES]
    if batch.shape != (32, 10) or not np.allclose(batch.sum(axis=1), 1, atol=1e-4) or not (batch >= 0).all():
        raise ModelError("self_check", "fails its self-check: `probabilities` are not ten numbers that sum to 1")
    if (logits.argmax(axis=1) != batch.argmax(axis=1)).any():
        raise ModelError("self_check", "fails its self-check: `logits` and `probabilities` name different digits")
    whole = outputs[:, WHOLE]
    if not ((whole >= 0) & (whole <= 1)).all():  # false for NaN, too
        raise ModelError("self_check", "fails its self-check: `whole` is not a probability from 0 to 1")
    if not np.allclose(outputs[0, PROBABILITIES.start :], single[0, PROBABILITIES.start :], atol=1e-4):
        raise ModelError("self_check", "fails its self-check: an image's answer depends on the batch it is in")


def _open_session(content: bytes, provider: str) -> onnxruntime.InferenceSession:
    if provider not in onnxruntime.get_available_providers():
        raise ModelError(
            ENVIRONMENT,
            "cannot be run: the CUDA provider needs onnxruntime-gpu in place of onnxruntime (`make install-gpu`); "
            f"the ONNX Runtime installed here has {', '.join(onnxruntime.get_available_providers())}",
        )
    options = onnxruntime.SessionOptions()
    # One core a run, in the calling thread: the batcher has as many threads as there are cores to use.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")  # ONNX Runtime checks its own format less
    if provider == "CUDAExecutionProvider":
        onnxruntime.preload_dlls()  # the CUDA libraries that come as Python packages
    # Without enable_fallback=0, ONNX Runtime silently replaces a GPU that fails later by the CPU.
    session = onnxruntime.InferenceSession(content, options, providers=[provider], enable_fallback=0)
    # ONNX Runtime also goes on without a provider that fails to start; an operator who asked for a GPU must learn of it.
    if session.get_providers()[0] != provider:
        raise ModelError(
            ENVIRONMENT,
            f"cannot be run: {provider} did not start: is there a GPU with its driver?",
        )
    return session


def _require(kind: str, expected: contract.Tensors, nodes: Iterable[onnxruntime.NodeArg]) -> None:
    """Raises ModelError unless the graph's inputs or outputs have the expected names, types and shapes.

    None in a shape stands for any batch size.
    """
    found = {node.name: (node.type, [size if isinstance(size, int) else None for size in node.shape]) for node in nodes}
    if found != expected:
        raise breach(f"its {kind} are {found}, expected {expected}")
