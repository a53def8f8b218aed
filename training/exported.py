"""Runs an exported ONNX file in ONNX Runtime."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from training.certificates import refuse
from training.whole import Heads, is_whole


class Decisions(NamedTuple):
    """What a service compares with a certified threshold.

    Attributes:
        probabilities: (N, 10) float32, of the digits.
        confidence: (N,) float32, the largest probability; 0 where `whole` is False, so that no threshold accepts the answer.
        whole: (N,) bool, False where the second head refuses the image; True everywhere in a file of contract 1.
    """

    probabilities: np.ndarray
    confidence: np.ndarray
    whole: np.ndarray


class VerificationError(Exception):
    """The ONNX file contradicts its Keras network, its metadata or the run record; the message gives the difference."""


class Exported:
    """An ONNX file loaded in ONNX Runtime's CPU provider.

    Attributes:
        path: the file.
        sha256: checksum of the file, hexadecimal.
        metadata: the file's metadata, by name.
    """

    def __init__(self, path: Path, threads: int = 0):
        """Loads the file.

        Args:
            path: the ONNX file.
            threads: number of threads per run; 0 uses all cores.

        Raises:
            VerificationError: the file is not a valid model.
        """
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise VerificationError(f"{path} can't be loaded: {error}") from error
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        there = {output.name for output in self._session.get_outputs()}
        self._outputs = ["logits", "probabilities", *(["whole"] if "whole" in there else [])]
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def answers(self, images: np.ndarray, batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Runs `images`, (N, 28, 28) uint8, in batches of `batch_size`.

        Returns:
            Logits and probabilities, (N, 10) float32 each.
        """
        logits, probabilities, _ = self.outputs(images, batch_size)
        return logits, probabilities

    def uncalibrated_answers(self, images: np.ndarray) -> Heads:
        """Returns the logits of `outputs`, and the probability of one whole digit."""
        logits, _, whole = self.outputs(images)
        return Heads(logits, whole)

    def decisions(self, images: np.ndarray) -> Decisions:
        """Runs `images`, (N, 28, 28) uint8, and refuses what the threshold in the file's metadata refuses.

        Raises:
            VerificationError: the metadata of a file with a second head lack its threshold.
        """
        _, probabilities, probability = self.outputs(images)
        whole = np.ones(len(images), bool)
        if probability is not None:
            if "whole_threshold" not in self.metadata:
                raise VerificationError(f"{self.path}: its metadata lack whole_threshold, which an output `whole` requires")
            whole = is_whole(probability, float(self.metadata["whole_threshold"]))
        return Decisions(probabilities, refuse(probabilities.max(axis=1), whole), whole)

    def outputs(self, images: np.ndarray, batch_size: int = 128) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Runs `images`, (N, 28, 28) uint8, in batches of `batch_size`.

        Returns:
            Logits and probabilities, (N, 10) float32 each, and the probability that an image shows one whole digit, (N,)
            float32. The latter is None for a file of contract 1, which has no such output.
        """
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        runs = [self._session.run(self._outputs, {"images": batch}) for batch in batches]
        logits, probabilities, *whole = (np.concatenate(parts) for parts in zip(*runs, strict=True))
        return logits, probabilities, whole[0].reshape(-1) if whole else None
