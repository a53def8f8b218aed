"""Proves that an exported file answers as the Keras network that it was made from."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import onnxruntime

from training.calibrate import softmax
from training.fit import logits

TOLERANCE = 1e-5
BATCH_SIZES = (1, 7, 32)


class VerificationError(Exception):
    """The ONNX file does not answer as the Keras network does; the message says where."""


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


def verify(path: Path, network: keras.Sequential, temperature: float, images: np.ndarray) -> Verification:
    """Runs every image through both, in batches of 1, 7 and 32: same digit everywhere, probabilities within 1e-5.

    Args:
        path: the ONNX file, run on ONNX Runtime's CPU provider.
        network: the Keras network behind it.
        temperature: the calibration that went into the file.
        images: (N, 28, 28) uint8.

    Raises:
        VerificationError: a digit differs, or a probability by more than the tolerance.
    """
    expected = softmax(logits(network, images), temperature)
    largest = 0.0
    for size in BATCH_SIZES:
        answered = probabilities(path, images, size)
        difference = float(np.abs(answered - expected).max())
        moved = np.flatnonzero(answered.argmax(axis=1) != expected.argmax(axis=1))
        if len(moved) or not difference <= TOLERANCE:
            raise VerificationError(
                f"{path} does not answer as its Keras network at batch size {size}: {len(moved)} of {len(images)} digits "
                f"differ, probabilities by up to {difference:.1e} (tolerance {TOLERANCE:.0e})"
            )
        largest = max(largest, difference)
    return Verification(len(images), BATCH_SIZES, largest)


def probabilities(path: Path, images: np.ndarray, batch_size: int) -> np.ndarray:
    """What the ONNX file at `path` answers for `images`, in runs of `batch_size`: (N, 10) float32."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([session.run(["probabilities"], {"images": batch})[0] for batch in batches])
