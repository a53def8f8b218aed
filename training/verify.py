"""Proves that an exported file answers as the Keras network that it was made from."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import onnxruntime

from training.calibrate import softmax
from training.fit import logits

BATCH_SIZES = (1, 7, 32, 128)
TOLERANCE = 1e-5  # of probabilities
LOGIT_TOLERANCE = 1e-4  # of logits, as a share of their size above 1


class VerificationError(Exception):
    """The ONNX file does not answer as the Keras network does, or not as it says of itself; the message says where."""


@dataclass(frozen=True)
class Verification:
    """What was compared, and the largest difference seen between any two probabilities."""

    images: int
    batch_sizes: tuple[int, ...]
    largest_difference: float

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        return (
            f"ONNX agrees with Keras on all {self.images:,} images at batch {sizes}; "
            f"probabilities differ by {self.largest_difference:.1e} at most"
        )


class Exported:
    """An ONNX file on ONNX Runtime's CPU provider.

    Attributes:
        metadata: what the file says of itself, by name.
    """

    def __init__(self, path: Path):
        """Loads the file. Raises VerificationError when it is no model."""
        self.path = path
        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise VerificationError(f"{path} can't be loaded: {error}") from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def answers(self, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits and probabilities, (N, 10) float32 each, of `images`, (N, 28, 28) uint8, in runs of `batch_size`."""
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        runs = [self._session.run(["logits", "probabilities"], {"images": batch}) for batch in batches]
        return np.concatenate([run[0] for run in runs]), np.concatenate([run[1] for run in runs])


def verify(exported: Exported, network: keras.Sequential, temperature: float, images: np.ndarray) -> Verification:
    """Runs every image through both, in batches of 1, 7, 32 and 128: same digit everywhere, probabilities within 1e-5.

    Args:
        exported: the ONNX file.
        network: the Keras network behind it.
        temperature: the calibration that went into the file.
        images: (N, 28, 28) uint8.

    Raises:
        VerificationError: a digit differs, or a probability or a logit by more than its tolerance.
    """
    expected_logits = logits(network, images)
    expected = softmax(expected_logits, temperature)
    largest = 0.0
    for size in BATCH_SIZES:
        answered_logits, answered = exported.answers(images, size)
        difference = float(np.abs(answered - expected).max())
        moved = np.flatnonzero(answered.argmax(axis=1) != expected.argmax(axis=1))
        if len(moved) or not difference <= TOLERANCE:
            raise VerificationError(
                f"{exported.path} does not answer as its Keras network at batch size {size}: {len(moved)} of {len(images)} "
                f"digits differ, probabilities by up to {difference:.1e} (tolerance {TOLERANCE:.0e})"
            )
        if not np.allclose(answered_logits, expected_logits, rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE):
            difference = float(np.abs(answered_logits - expected_logits).max())
            raise VerificationError(
                f"{exported.path}: logits differ from Keras' by up to {difference:.1e} at batch size {size}"
            )
        largest = max(largest, difference)
    return Verification(len(images), BATCH_SIZES, largest)
