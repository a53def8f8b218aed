"""Runs the model on one batch and derives what each image shows, its digit and its confidence."""

from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES, OUTPUTS
from serving.inference.metadata import ModelError, ModelMetadata

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# The columns of a row; one row an image.
LOGITS, PROBABILITIES, WHOLE = slice(0, 10), slice(10, 20), 20
DIGIT, CONFIDENCE, SHOWS = 21, 22, 23
_OUTPUT_COLUMNS, _COLUMNS = 21, 24

# The values of the column SHOWS: no ink; ink that is not one whole digit; one whole digit.
BLANK, NOT_ONE_DIGIT, ONE_DIGIT = range(3)


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
        self._outputs = tuple(OUTPUTS[metadata.contract])
        self._whole_threshold = np.float64(metadata.whole_threshold)  # NumPy would round a Python float to float32

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the network once.

        Args:
            images: (N, 28, 28) uint8, 0 paper, 255 ink.

        Returns:
            (N, 21) float32: ten logits, ten calibrated probabilities, and the probability that the image shows one whole
            digit, which is 1 where the model has contract 1.

        Raises:
            ValueError: the outputs have other shapes. ONNX Runtime does not check them, and NumPy would repeat one row.
        """
        logits, probabilities, *whole = self._session.run(self._outputs, {"images": images})
        count = len(images)
        sizes = 10 * count  # cheaper to compare than shapes; the assignments below refuse other shapes of this size
        if logits.size != sizes or probabilities.size != sizes or (whole and whole[0].size != count):
            shapes = [output.shape for output in (logits, probabilities, *whole)]
            raise ValueError(f"the model returned the shapes {shapes} for {count} images")
        outputs = np.empty((count, _OUTPUT_COLUMNS), np.float32)
        outputs[:, LOGITS] = logits
        outputs[:, PROBABILITIES] = probabilities
        outputs[:, WHOLE:DIGIT] = whole[0] if whole else 1
        return outputs

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the network once and derives each image's answer.

        Args:
            images: (N, 28, 28) uint8, 0 paper, 255 ink.

        Returns:
            (N, 24) float32: the columns of `infer`, the most probable digit, its probability, and what the image shows:
            BLANK, NOT_ONE_DIGIT where `whole` is below the threshold of the version, or ONE_DIGIT.
        """
        rows = np.empty((len(images), _COLUMNS), np.float32)
        rows[:, :_OUTPUT_COLUMNS] = self.infer(images)
        probabilities = rows[:, PROBABILITIES]
        rows[:, DIGIT] = probabilities.argmax(axis=1)
        rows[:, CONFIDENCE] = probabilities.max(axis=1)
        inked, judged = images.reshape(-1, IMAGE_BYTES).max(axis=1) > 0, rows[:, WHOLE] >= self._whole_threshold
        rows[:, SHOWS] = inked * (NOT_ONE_DIGIT + judged)
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
