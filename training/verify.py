"""Verifies that an exported ONNX file answers as what it was made from: its Keras network, or the stages of a cascade."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training.calibrate import softmax
from training.cascade.stages import stages_of
from training.dataset import Examples
from training.evaluate import Evaluation, evaluate, predict_heads
from training.exported import Exported, VerificationError
from training.version_directory import VersionError, load_network, read_record
from training.whole import Heads

Reference = Callable[[np.ndarray], Heads]  # answers images, (N, 28, 28) uint8, as the file must

BATCH_SIZES = (1, 7, 32, 128)
TOLERANCE = 1e-5  # absolute, of probabilities
LOGIT_TOLERANCE = 1e-4  # of logits: absolute up to a size of 1, relative above
INT8_AGREEMENT = 0.9995  # share of equal digits in 8 bits, so that accuracy falls by at most 0.0005
INT8_LOGIT_ERROR = 0.1  # of logits in 8 bits: root mean square error relative to the root mean square of the logits


@dataclass(frozen=True)
class Verification:
    """Results of comparing an ONNX file with what it was made from.

    Attributes:
        images: number of compared images.
        batch_sizes: batch sizes at which the file was run.
        agreement: share of images with the same predicted digit.
        largest_difference: largest difference between a probability of the file and of its origin.
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
            f"ONNX agrees with its source on {agrees} images at batch {sizes}; "
            f"probabilities differ by {self.largest_difference:.1e} at most"
        )


def verify_version(version: Path, test: Examples) -> tuple[Evaluation, Verification]:
    """Checks a version's ONNX file against its metadata, the run record, the test images and what it was made from.

    Args:
        version: a version directory that `digits-train` published; the stages of a cascade must lie beside it.
        test: the test images that the version was evaluated on.

    Raises:
        VersionError: it is not a version directory, or incomplete.
        VerificationError: the test accuracy is not the one in its metadata, or the file contradicts the run record or its
            origin.
    """
    record = read_record(version)
    cascade = "cascade" in record
    reference: Reference = stages_of(version, record) if cascade else partial(predict_heads, load_network(version))
    exported = Exported(version / "model.onnx")
    try:
        in_metadata = tuple(float(exported.metadata[name]) for name in ("temperature", "test_accuracy"))
        recorded = (record["temperature"], record["test"]["accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise VersionError(f"{version} is not a version that `digits-train run` made: {error}") from error
    if recorded != in_metadata:
        raise VerificationError(
            f"{version}: temperature and test accuracy are {recorded} in run.json, but {in_metadata} in model.onnx"
        )
    temperature, accuracy = in_metadata
    evaluation = evaluate(exported.answers(test.images)[1], test.labels)
    if evaluation.accuracy != accuracy:
        raise VerificationError(
            f"{exported.path}: the metadata give a test accuracy of {accuracy}, but it is {evaluation.accuracy}"
        )
    rounded = exported.metadata.get("precision") == "int8" and not cascade
    return evaluation, verify(exported, reference, temperature, test.images, rounded)


def verify(exported: Exported, reference: Reference, temperature: float, images: np.ndarray, rounded: bool) -> Verification:
    """Compares the ONNX file with what it was made from at batch sizes 1, 7, 32 and 128.

    Every digit must be equal, and every probability within 1e-5. An 8-bit file can't match every answer of a float32
    network. It must give the same digit for 9,995 of 10,000 images, and the root mean square error of its logits must be at
    most a tenth. Across batch sizes and at the expected temperature, it must match its own outputs as closely as a float32
    file matches Keras.

    Args:
        exported: the ONNX file.
        reference: what it was made from: a Keras network, or the stages of a cascade.
        temperature: the temperature that the file should contain.
        images: (N, 28, 28) uint8.
        rounded: the file has 8 bits and the reference has not.

    Raises:
        VerificationError: a digit differs, or a probability or a logit differs by more than its tolerance.
    """
    expected_logits, expected_whole = reference(images)
    agreement, quantisation_error = 1.0, 0.0
    if rounded:
        keras_logits = expected_logits
        expected_logits, expected_whole = exported.uncalibrated_answers(images)
        agreement, quantisation_error = _quantisation_effect(expected_logits, keras_logits, temperature)
    expected = softmax(expected_logits, temperature)
    largest = 0.0
    for size in BATCH_SIZES:
        answered_logits, answered, whole = exported.outputs(images, size)
        difference = float(np.abs(answered - expected).max())
        changed = np.flatnonzero(answered.argmax(axis=1) != expected.argmax(axis=1))
        if len(changed) or not difference <= TOLERANCE:
            raise VerificationError(
                f"{exported.path.name} differs from what it was made from at batch size {size}: {len(changed)} of "
                f"{len(images)} digits differ, probabilities by up to {difference:.1e} (tolerance {TOLERANCE:.0e})"
            )
        if not np.allclose(answered_logits, expected_logits, rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE):
            difference = float(np.abs(answered_logits - expected_logits).max())
            raise VerificationError(
                f"{exported.path.name}: logits differ from the expected ones by up to {difference:.1e} at batch size {size}"
            )
        if not _equal(whole, expected_whole):
            raise VerificationError(f"{exported.path.name}: `whole` differs from the expected one at batch size {size}")
        largest = max(largest, difference)
    return Verification(len(images), BATCH_SIZES, agreement, max(largest, quantisation_error))


def _equal(whole: np.ndarray | None, expected: np.ndarray | None) -> bool:
    """Tests if two outputs `whole` agree, or if both are missing."""
    if whole is None or expected is None:
        return whole is expected
    return np.allclose(whole, expected, rtol=0, atol=TOLERANCE)


def _quantisation_effect(int8_logits: np.ndarray, keras_logits: np.ndarray, temperature: float) -> tuple[float, float]:
    """Measures the effect of quantisation.

    Args:
        int8_logits: (N, 10) logits of the 8-bit file.
        keras_logits: (N, 10) logits of the Keras network.
        temperature: applied to both.

    Returns:
        The share of equal digits, and the largest difference of probabilities.

    Raises:
        VerificationError: too few digits are equal, or the logits differ too much.
    """
    agreement = float((int8_logits.argmax(axis=1) == keras_logits.argmax(axis=1)).mean())
    error = float(np.sqrt(((int8_logits - keras_logits) ** 2).mean() / (keras_logits**2).mean()))
    if agreement < INT8_AGREEMENT or not error <= INT8_LOGIT_ERROR:
        raise VerificationError(
            f"in 8 bits the file differs too much from its Keras network: {agreement:.2%} of the digits are equal "
            f"(at least {INT8_AGREEMENT:.2%} required), and the logits have an error of {error:.1%} "
            f"(at most {INT8_LOGIT_ERROR:.0%} allowed)"
        )
    return agreement, float(np.abs(softmax(int8_logits, temperature) - softmax(keras_logits, temperature)).max())
