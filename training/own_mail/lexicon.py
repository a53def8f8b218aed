"""Fields read with a lexicon: the answers of the service's own lookup, and fields made to show the lexicon's codes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.answers.lexicon import Lexicon, LexiconError
from training.dataset import DatasetError
from training.mail import Mail


@dataclass(frozen=True)
class LexiconFile:
    """A lexicon as the service reads it.

    Attributes:
        name: name of the file without its ending, as callers of the service name it.
        lexicon: the lexicon.
        codes: (C, L) digits, uint8, by the number L of digits.
        sha256: checksum of the file.
    """

    name: str
    lexicon: Lexicon
    codes: dict[int, np.ndarray]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "LexiconFile":
        """Reads a file with one code a line. Raises DatasetError if the service would refuse it."""
        try:
            lexicon = Lexicon.from_file(path)
            content = path.read_bytes()
        except LexiconError as error:
            raise DatasetError(str(error)) from error
        codes = sorted(set(content.decode().split()))
        by_length = {
            length: np.array([list(code) for code in codes if len(code) == length], np.uint8)
            for length in sorted({len(code) for code in codes})
        }
        return cls(path.stem, lexicon, by_length, hashlib.sha256(content).hexdigest())


def lookup(lexicon: Lexicon, probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads fields with a lexicon, as the service does.

    Args:
        lexicon: the lexicon.
        probabilities: (F, L, 10) a model's calibrated answers.
        labels: (F, L) true digits.

    Returns:
        Confidence of each field, (F,) float64, 0 where the service would reject it as not in the lexicon; and True where all
        digits are correct, (F,) bool.
    """
    matches = [lexicon.lookup(field) for field in probabilities.astype(np.float64)]
    confidence = np.array([0.0 if match.unlisted > 0.5 else match.confidence for match in matches])
    read = np.array([match.digits for match in matches]).reshape(labels.shape)
    return confidence, (read == labels).all(axis=1)


def count_unlisted(codes: np.ndarray, labels: np.ndarray) -> int:
    """Counts the fields, (F, L) true digits, uint8, that show none of the codes of a lexicon, (C, L) uint8."""
    listed = {code.tobytes() for code in codes}
    return sum(field.tobytes() not in listed for field in labels)


def fields_of_codes(mail: Mail, codes: np.ndarray) -> np.ndarray:
    """Makes fields that show codes of a lexicon, from single digits. No image is used twice.

    Codes are drawn at random with equal probability. Each digit takes the next unused image of its class, in the mail's
    order. Where the images are ordered by writer, most images of a field are by one writer.

    Args:
        mail: the mail; its images without a digit are not used.
        codes: (C, L) digits.

    Returns:
        (F, L) indices of images. Fields are made until the images of a digit are used up.
    """
    length = codes.shape[1]
    waiting = [np.flatnonzero(mail.labels == digit) for digit in range(10)]
    drawn = codes[np.random.default_rng(0).integers(len(codes), size=len(mail.labels) // length)]
    used = np.zeros(10, int)
    fields = []
    for code in drawn:
        wanted = np.bincount(code, minlength=10)
        if any(used[digit] + wanted[digit] > len(waiting[digit]) for digit in range(10)):
            break
        field = []
        for digit in code.tolist():
            field.append(waiting[digit][used[digit]])
            used[digit] += 1
        fields.append(field)
    return np.array(fields, int).reshape(-1, length)
