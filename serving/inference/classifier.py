"""What a model says of the images of a run, made out and counted where it runs, for all requests at once."""

import numpy as np
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES
from serving.inference.batcher import Network
from serving.telemetry.version_metrics import VersionMetrics

# What the columns of a row are, one row an image.
LOGITS, PROBABILITIES, DIGIT, CONFIDENCE, INKED = slice(0, 10), slice(10, 20), 20, 21, 22
_COLUMNS = 23


class Classifier:
    """A version's model, with what its answers mean."""

    def __init__(self, model: Network, metrics: VersionMetrics):
        self._model = model
        self._metrics = metrics

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Runs the model on images, (n, 28, 28) uint8, on any thread, and counts what it reads in those with ink.

        Returns:
            (n, 23) float32: the logits, the probabilities, the most probable digit, its probability, whether there is ink.
        """
        rows = np.empty((len(images), _COLUMNS), np.float32)
        rows[:, : PROBABILITIES.stop] = self._model.infer(images)
        probabilities = rows[:, PROBABILITIES]
        digits, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
        pixels = images.reshape(-1, IMAGE_BYTES)
        inked = pixels.max(axis=1) > 0
        rows[:, DIGIT], rows[:, CONFIDENCE], rows[:, INKED] = digits, confidences, inked
        told = inked & np.isfinite(confidences)  # what is said of blank images means nothing
        if not told.all():
            digits, confidences, pixels = digits[told], confidences[told], pixels[told]
        self._metrics.count_predictions(digits, confidences)
        self._metrics.measure(pixels)
        return rows
