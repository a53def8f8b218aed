"""The two stages of a cascade, joined in NumPy: what the joined file must answer."""

from pathlib import Path
from typing import Any

import numpy as np

from training.cascade.graph import LEAST, RAMP
from training.exported import Exported
from training.version_directory import VersionError
from training.whole import Heads


class Stages:
    """Two exported models.

    Args:
        first: the fast model, of contract 2.
        second: the model for unsure images; of contract 1, it leaves the joined `whole` to the first.
        threshold: calibrated confidence of the first stage below which an image goes on.
    """

    def __init__(self, first: Exported, second: Exported, threshold: float):
        self._first = first
        self._second = second
        self._threshold = np.float32(threshold)

    def unsure(self, images: np.ndarray) -> np.ndarray:
        """Tests which images, (N, 28, 28) uint8, go on to the second stage: (N,) bool."""
        unsure: np.ndarray = self._first.answers(images)[1].max(axis=1) < self._threshold
        return unsure

    def __call__(self, images: np.ndarray) -> Heads:
        """Returns the joined logits, (N, 10), and the probability of one whole digit, (N,), of (N, 28, 28) uint8 images."""
        logits, probabilities, whole = self._first.outputs(images)
        if whole is None:
            raise VersionError(f"{self._first.path.parent} has no output `whole`, which the first stage of a cascade needs")
        second_logits, _, second_whole = self._second.outputs(images)
        confidence = probabilities.max(axis=1)
        low = RAMP * self._threshold
        weight = np.clip((confidence - low) / (self._threshold - low), LEAST, 1)
        weight = np.where(confidence < self._threshold, weight, 1)
        if second_whole is not None:
            whole = whole**weight * second_whole ** (1 - weight)
        column = weight[:, np.newaxis]
        scaled, second_scaled = logits / _temperature(self._first), second_logits / _temperature(self._second)
        return Heads(column * scaled + (1 - column) * second_scaled, whole)


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


def _temperature(model: Exported) -> float:
    return float(model.metadata["temperature"])
