"""The two stages of a cascade, joined in NumPy: what the joined file must answer."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from training.cascade.graph import LEAST, RAMP
from training.exported import Exported
from training.version_directory import VersionError
from training.whole import Heads


class Stages:
    """Two exported models of contract 2.

    Args:
        first: the fast model.
        second: the model for unsure images.
        threshold: calibrated confidence of the first stage below which an image goes on.
    """

    def __init__(self, first: Exported, second: Exported, threshold: float):
        self._first = first
        self._second = second
        self._threshold = np.float32(threshold)

    def unsure(self, images: np.ndarray) -> np.ndarray:
        """Tests which images, (N, 28, 28) uint8, go on to the second stage: (N,) bool."""
        unsure: np.ndarray = np.exp(self._log_answers(self._first, images)[:, :10].max(axis=1)) < self._threshold
        return unsure

    def __call__(self, images: np.ndarray) -> Heads:
        """Returns the joined logits, (N, 10), and the probability of one whole digit, (N,), of (N, 28, 28) uint8 images."""
        answers = self._log_answers(self._first, images)
        confidence = np.exp(answers[:, :10].max(axis=1, keepdims=True))
        low = RAMP * self._threshold
        weight = np.clip((confidence - low) / (self._threshold - low), LEAST, 1)
        mean = weight * answers + (1 - weight) * self._log_answers(self._second, images)
        answers = np.where(confidence < self._threshold, mean, answers)
        return Heads(answers[:, :10], np.exp(answers[:, 10]))

    @staticmethod
    def _log_answers(model: Exported, images: np.ndarray) -> np.ndarray:
        """Returns the calibrated log-probabilities of the digits, and that of one whole digit, (N, 11)."""
        logits, whole = model.uncalibrated_answers(images)
        if whole is None:
            raise VersionError(f"{model.path.parent} has no output `whole`; a cascade joins two models of contract 2")
        digits = log_softmax(logits / float(model.metadata["temperature"]), axis=1)
        return np.column_stack([digits, np.log(np.maximum(whole, 1e-30))])


def stages_of(version: Path, record: dict[str, Any]) -> Stages:
    """Loads the stages of a cascade, which lie in the same model repository.

    Raises:
        VersionError: a stage is missing, or has another checksum than the one that was joined.
        VerificationError: a stage can't be loaded.
    """
    stages = []
    for stage in record["cascade"]["stages"]:
        file = version.parent.parent / stage["model"] / stage["version"] / "model.onnx"
        exported = Exported(file) if file.is_file() else None
        if not exported or exported.sha256 != stage["sha256"]:
            raise VersionError(f"{version} is a cascade that includes {file.parent}, which is missing or has changed")
        stages.append(exported)
    first, second = stages
    return Stages(first, second, record["cascade"]["threshold"])
