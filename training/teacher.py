"""Teacher: a trained model whose answers become a part of the targets of another network.

Source: Hinton, Vinyals & Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531.
"""

import hashlib
from pathlib import Path

import numpy as np

from training.verify import Exported


class Teacher:
    """A version's ONNX file.

    Attributes:
        path: the file.
        sha256: its checksum, hexadecimal.
    """

    def __init__(self, path: Path):
        """Loads the file.

        Raises:
            VerificationError: the file is missing or is not a valid model.
        """
        self.path = path
        self._exported = Exported(path)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of the ten digits, (N, 10) float32, for (N, 28, 28) uint8 images."""
        return self._exported.answers(images)[1]
