"""Proves that an exported file answers as the Keras network that it was made from."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import onnxruntime

from training.calibrate import softmax
from training.dataset import Examples
from training.evaluate import Evaluation, evaluate
from training.fit import logits
from training.version_directory import VersionError, load_network, read_record

BATCH_SIZES = (1, 7, 32, 128)
TOLERANCE = 1e-5  # of probabilities
LOGIT_TOLERANCE = 1e-4  # of logits, as a share of their size above 1
INT8_AGREEMENT = 0.9995  # of digits, in 8 bits, so that accuracy can't fall by more than 0.0005
INT8_LOGIT_ERROR = 0.1  # of logits in 8 bits: root mean square, as a share of the logits' own


class VerificationError(Exception):
    """The ONNX file does not answer as the Keras network does, or not as it says of itself; the message says where."""


@dataclass(frozen=True)
class Verification:
    """What was compared, and what was seen.

    Attributes:
        images: how many images were compared.
        batch_sizes: how many of them went into one run.
        agreement: share of the images that both read as the same digit.
        largest_difference: between a probability that the file gives and Keras' own.
    """

    images: int
    batch_sizes: tuple[int, ...]
    agreement: float
    largest_difference: float

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        differing = round((1 - self.agreement) * self.images)
        agrees = f"all {self.images:,}" if not differing else f"all but {differing} of {self.images:,}"
        return (
            f"ONNX agrees with Keras on {agrees} images at batch {sizes}; "
            f"probabilities differ by {self.largest_difference:.1e} at most"
        )


class Exported:
    """An ONNX file on ONNX Runtime's CPU provider.

    Attributes:
        metadata: what the file says of itself, by name.
    """

    def __init__(self, path: Path, threads: int = 0):
        """Loads the file, to run on so many `threads`; 0 takes all cores. Raises VerificationError when it is no model."""
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise VerificationError(f"{path} can't be loaded: {error}") from error
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def answers(self, images: np.ndarray, batch_size: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Logits and probabilities, (N, 10) float32 each, of `images`, (N, 28, 28) uint8, in runs of `batch_size`."""
        batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        runs = [self._session.run(["logits", "probabilities"], {"images": batch}) for batch in batches]
        return np.concatenate([run[0] for run in runs]), np.concatenate([run[1] for run in runs])


def verify_version(version: Path, test: Examples) -> tuple[Evaluation, Verification]:
    """Judges a version's ONNX file on the test images, and holds it against what it says of itself and the Keras network.

    Args:
        version: a version's directory, as `pipeline.run` leaves it.
        test: the images that it was judged on.

    Raises:
        VersionError: it is no such directory, or not whole.
        VerificationError: its file reads another share of `test` than it says, contradicts the run record, or differs from
            its network.
    """
    record, network = read_record(version), load_network(version)
    exported = Exported(version / "model.onnx")
    try:
        temperature, stated = (float(exported.metadata[name]) for name in ("temperature", "test_accuracy"))
        recorded = (record["temperature"], record["test"]["accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise VersionError(f"{version} is no version that `digits-train run` made: {error}") from error
    if recorded != (temperature, stated):
        raise VerificationError(
            f"{version}: by run.json temperature and test accuracy are {recorded}, by model.onnx {(temperature, stated)}"
        )
    evaluation = evaluate(exported.answers(test.images)[1], test.labels)
    if evaluation.accuracy != stated:
        raise VerificationError(
            f"{exported.path} says of itself that its test accuracy is {stated}, and it is {evaluation.accuracy}"
        )
    return evaluation, verify(exported, network, temperature, test.images)


def verify(exported: Exported, network: keras.Sequential, temperature: float, images: np.ndarray) -> Verification:
    """Runs every image through both, in batches of 1, 7, 32 and 128: same digit everywhere, probabilities within 1e-5.

    A file in 8 bits, as its metadata say, can't be held to Keras' every answer: it must give the same digit for 9,995 images
    of 10,000 and logits that are a tenth off at most, taken together; and to itself it is held as closely as others are to
    Keras, in batches of any size, at the temperature that it should have.

    Args:
        exported: the ONNX file.
        network: the Keras network behind it.
        temperature: the calibration that went into the file.
        images: (N, 28, 28) uint8.

    Raises:
        VerificationError: a digit differs, or a probability or a logit by more than its tolerance.
    """
    expected_logits = logits(network, images)
    agreement, off = 1.0, 0.0
    if exported.metadata.get("precision") == "int8":
        of_keras, (expected_logits, _) = expected_logits, exported.answers(images)
        agreement, off = _nearness(expected_logits, of_keras, temperature)
    expected = softmax(expected_logits, temperature)
    largest = 0.0
    for size in BATCH_SIZES:
        answered_logits, answered = exported.answers(images, size)
        difference = float(np.abs(answered - expected).max())
        moved = np.flatnonzero(answered.argmax(axis=1) != expected.argmax(axis=1))
        if len(moved) or not difference <= TOLERANCE:
            raise VerificationError(
                f"{exported.path.name} does not answer as its Keras network at batch size {size}: {len(moved)} of "
                f"{len(images)} digits differ, probabilities by up to {difference:.1e} (tolerance {TOLERANCE:.0e})"
            )
        if not np.allclose(answered_logits, expected_logits, rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE):
            difference = float(np.abs(answered_logits - expected_logits).max())
            raise VerificationError(
                f"{exported.path.name}: logits differ from Keras' by up to {difference:.1e} at batch size {size}"
            )
        largest = max(largest, difference)
    return Verification(len(images), BATCH_SIZES, agreement, max(largest, off))


def _nearness(in_8_bits: np.ndarray, of_keras: np.ndarray, temperature: float) -> tuple[float, float]:
    """The share of digits that agree, and the largest difference of probabilities; VerificationError if far apart.

    Args:
        in_8_bits: (N, 10) logits of the file.
        of_keras: (N, 10) logits of the network that it was made from.
        temperature: of both.
    """
    agreement = float((in_8_bits.argmax(axis=1) == of_keras.argmax(axis=1)).mean())
    error = float(np.sqrt(((in_8_bits - of_keras) ** 2).mean() / (of_keras**2).mean()))
    if agreement < INT8_AGREEMENT or not error <= INT8_LOGIT_ERROR:
        raise VerificationError(
            f"in 8 bits it does not answer as its Keras network: {agreement:.2%} of the digits are the same, and "
            f"{INT8_AGREEMENT:.2%} should be; its logits are {error:.1%} off, and {INT8_LOGIT_ERROR:.0%} is the most"
        )
    return agreement, float(np.abs(softmax(in_8_bits, temperature) - softmax(of_keras, temperature)).max())
