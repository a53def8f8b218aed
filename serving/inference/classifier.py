"""Runs the model on one batch and derives digit, confidence and ink flag of each image."""

from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES
from serving.inference.metadata import ModelError, ModelMetadata

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# The columns of a row; one row an image.
LOGITS, PROBABILITIES, DIGIT, CONFIDENCE, INKED = slice(0, 10), slice(10, 20), 20, 21, 22
_COLUMNS = 23


class Network(Protocol):
    """The part of a Classifier that the batcher needs."""

    def classify(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Runs the model once on (N, 28, 28) images, on any thread, and returns one row an image."""


class Classifier:
    """A model version in one ONNX Runtime session; model.py opens it.

    Several threads may call it at once; each run uses one core, in its caller's thread.

    Attributes:
        version: the version number, a decimal string.
        metadata: the properties that the file carries.
    """

    def __init__(self, session: onnxruntime.InferenceSession, version: str, metadata: ModelMetadata):
        self.version = version
        self.metadata = metadata
        self._session = session

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the network once.

        Args:
            images: (N, 28, 28) uint8, 0 paper, 255 ink.

        Returns:
            (N, 20) float32: ten logits, then ten calibrated probabilities.
        """
        outputs: list[NDArray[np.float32]] = self._session.run(["logits", "probabilities"], {"images": images})
        return np.concatenate(outputs, axis=1)

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the network once and derives each image's answer.

        Args:
            images: (N, 28, 28) uint8, 0 paper, 255 ink.

        Returns:
            (N, 23) float32: ten logits, ten probabilities, the most probable digit, its probability, and 1 where the image
            has ink, else 0.
        """
        rows = np.empty((len(images), _COLUMNS), np.float32)
        rows[:, : PROBABILITIES.stop] = self.infer(images)
        probabilities = rows[:, PROBABILITIES]
        rows[:, DIGIT] = probabilities.argmax(axis=1)
        rows[:, CONFIDENCE] = probabilities.max(axis=1)
        rows[:, INKED] = images.reshape(-1, IMAGE_BYTES).max(axis=1) > 0
        return rows

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the probabilities of the ten digits, (N, 10) float32, for (N, 28, 28) uint8 images."""
        return self.infer(images)[:, PROBABILITIES]

    def warm_up(self, max_batch_size: int) -> None:
        """Runs batches of 1, 2, 4 and so on up to `max_batch_size`. On a GPU, which tunes each size, runs every size.

        On a CPU the first run at a size in between is as fast as later runs.

        Raises:
            ModelError: a run fails.
        """
        if self._session.get_providers()[0] == PROVIDERS["cuda"]:
            sizes = [*range(1, max_batch_size + 1)]
        else:
            sizes = [*(2**power for power in range(max_batch_size.bit_length())), max_batch_size]
        for size in sizes:
            try:
                self.infer(np.zeros((size, 28, 28), np.uint8))
            except Exception as error:  # ONNX Runtime's own exceptions share no base class
                raise ModelError("self_check", f"fails on a batch of {size}: {error}") from error
