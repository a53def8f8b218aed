"""Mail that thresholds are certified on, and a model's answers to it."""

from dataclasses import dataclass

import numpy as np

from training.dataset import NO_DIGIT, Examples
from training.evaluate import FIELD_LENGTHS


@dataclass(frozen=True)
class Mail:
    """Labelled images, and which of them are single digits or the digits of a field.

    Attributes:
        images: (N, 28, 28) uint8, 0 paper, 255 ink.
        labels: (N,) uint8, 0 to 9, or NO_DIGIT: every accepted answer to such an image is an error.
        digits: (D,) indices of the images that digit thresholds are certified on.
        fields: indices of the images of each field, (F, L) by the number L of digits.
        writers: (N,) number of each image's writer; None if the writers are unknown.
    """

    images: np.ndarray
    labels: np.ndarray
    digits: np.ndarray
    fields: dict[int, np.ndarray]
    writers: np.ndarray | None

    @classmethod
    def of(cls, examples: Examples) -> "Mail":
        """Takes all images as digits, and makes fields of consecutive images.

        Args:
            examples: images in the order of their writers, or as they follow each other in the mail. Images without a digit
                come last, and are in no field.
        """
        shown = int((examples.labels != NO_DIGIT).sum())
        fields = {length: np.arange(shown // length * length).reshape(-1, length) for length in FIELD_LENGTHS}
        made = {length: images for length, images in fields.items() if len(images)}
        return cls(examples.images, examples.labels, np.arange(len(examples)), made, examples.writers)

    def writers_of(self, images: np.ndarray) -> np.ndarray | None:
        """Returns the writers of the images with these indices, (K,); None if the writers are unknown."""
        return None if self.writers is None else self.writers[images]


@dataclass(frozen=True)
class Answers:
    """A model's answers to mail.

    Attributes:
        probabilities: (N, 10) float32, calibrated.
        confidence: (N,) float32, the largest probability; 0 for an answer that is never accepted.
        correct: (N,) bool, False where the image shows no digit.
    """

    probabilities: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray

    def fields(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns confidence and correctness of fields, (F,) each, of the images with the indices (F, L)."""
        return self.confidence[images].astype(np.float64).prod(axis=1), self.correct[images].all(axis=1)
