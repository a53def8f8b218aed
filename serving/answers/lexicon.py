"""Lexicons: the valid codes of a field, such as the postcodes of a country."""

import codecs
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import CannotStart
from serving.regular_file import read_regular

LONGEST = 18  # most digits in a code: 18 digits fit into 64 bits
_MOST_BYTES = 64 << 20  # of a file: ten million codes of five digits
UNLISTED = 0.01  # prior share of fields that show no code of the lexicon: new codes, slips of the pen

# If a length has at most _FEW codes, every code is weighed. Otherwise a beam search keeps the _HYPOTHESES most probable
# readings, without those that are less probable than the best by a factor of _LEAST_SHARE, scaled by the lexicon's density.
# The dropped readings count as unlisted.
_FEW = 20_000
_HYPOTHESES = 1024
_LEAST_SHARE = 1e-6


class LexiconError(CannotStart):
    """A lexicon can't be used; the message names the file and the reason."""


class Match(NamedTuple):
    """Result of a lookup.

    Attributes:
        digits: (n,) digits of the most probable code; or the most probable digits, if the field is more likely unlisted.
        confidence: probability that all of these digits are right.
        unlisted: probability that the field shows a number that is not in the lexicon.
    """

    digits: NDArray[np.intp]
    confidence: float
    unlisted: float


class Lexicon:
    """Set of codes, each a row of digits. Leading zeros count: 0501 and 00501 differ."""

    def __init__(self, codes: dict[int, NDArray[np.int64]]):
        """Takes the codes.

        Args:
            codes: codes as numbers, by their number of digits, in ascending order and without duplicates.
        """
        self._codes = codes
        self._digits = {
            length: (numbers[:, None] // _powers_of_ten(length) % 10).astype(np.uint8)
            for length, numbers in codes.items()
            if len(numbers) <= _FEW
        }

    def __len__(self) -> int:
        return sum(map(len, self._codes.values()))

    @classmethod
    def from_file(cls, file: Path) -> "Lexicon":
        """Reads a file of codes, one a line; empty lines are skipped.

        Raises:
            LexiconError: the file can't be read, has a line that is not 1 to 18 digits, or has no code.
        """
        try:
            content = read_regular(file, _MOST_BYTES).removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n") + b"\n"
        except OSError as error:
            raise LexiconError(f"cannot read the lexicon {file}: {error.strerror}") from error
        characters = np.frombuffer(content, np.uint8)
        ends = np.flatnonzero(characters == ord("\n"))
        starts = np.append(0, ends[:-1] + 1)
        lengths = ends - starts
        codes = {}
        for length in np.unique(lengths[lengths > 0]).tolist():
            first = starts[lengths == length]
            rows = characters[first[:, None] + np.arange(min(length, LONGEST))]
            wrong = (rows < ord("0")) | (rows > ord("9")) if length <= LONGEST else np.ones((1, 1), bool)
            if wrong.any():
                start = int(first[wrong.any(axis=1).argmax()])
                line, number = content[start : start + length], int(np.searchsorted(starts, start)) + 1
                raise LexiconError(
                    f"the lexicon {file}, line {number}: {line[:40].decode(errors='replace')!r} is not a code, "
                    f"expected 1 to {LONGEST} digits"
                )
            numbers = np.sort((rows - ord("0")) @ _powers_of_ten(length))
            codes[length] = numbers[np.append(True, numbers[1:] > numbers[:-1])]  # np.unique is ten times slower
        if not codes:
            raise LexiconError(f"the lexicon {file} is empty, expected a code a line")
        return cls(codes)

    def lookup(self, probabilities: NDArray[np.float64]) -> Match:
        """Finds the most probable code for the n images of a field, by Bayes' rule.

        The prior: all codes are equally frequent, and one field in a hundred (UNLISTED) shows a number that is not in the
        lexicon. The digits of a field are taken to be read independently of each other.

        Args:
            probabilities: (n, 10) calibrated probabilities of the digits.
        """
        length = len(probabilities)
        codes, likelihoods = self._weigh(probabilities)
        share = len(self._codes.get(length, ())) / 10.0**length
        if share == 1:  # every number is a code
            return Match(codes[likelihoods.argmax()], float(likelihoods.max()), 0.0)
        mass = float(likelihoods.sum())
        listed = (1 - UNLISTED) / share * mass if share else 0.0
        unlisted = UNLISTED / (1 - share) * max(1 - mass, 0)
        evidence = listed + unlisted or 1.0
        if listed > unlisted:
            best = likelihoods.argmax()
            return Match(codes[best], float(likelihoods[best] / mass * listed / evidence), unlisted / evidence)
        digits = probabilities.argmax(axis=1)
        likelihood = float(probabilities.max(axis=1).prod())
        weight = (1 - UNLISTED) / share if (codes == digits).all(axis=1).any() else UNLISTED / (1 - share)
        return Match(digits, weight * likelihood / evidence, unlisted / evidence)

    def _weigh(self, probabilities: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Returns the candidate codes of n images, (m, n) digits, and the likelihood of each, (m,)."""
        length = len(probabilities)
        if length in self._digits:
            digits = self._digits[length].astype(np.intp)
            return digits, probabilities[np.arange(length), digits].prod(axis=1)
        numbers = self._codes.get(length, np.empty(0, np.int64))
        readings, likelihoods = _search_readings(probabilities, _LEAST_SHARE * len(numbers) / 10.0**length)
        wanted = readings @ _powers_of_ten(length)
        indices = np.searchsorted(numbers, wanted)
        found = indices < len(numbers)
        found[found] = numbers[indices[found]] == wanted[found]
        return readings[found], likelihoods[found]


def read_lexicons(directory: Path) -> dict[str, Lexicon]:
    """Reads every NAME.txt in a directory; returns the lexicons by name. Raises LexiconError."""
    if not directory.is_dir():
        raise LexiconError(f"the directory of lexicons {directory} does not exist, or is not a directory")
    return {file.stem: Lexicon.from_file(file) for file in sorted(directory.glob("*.txt"))}


def _powers_of_ten(length: int) -> NDArray[np.int64]:
    """Returns the first `length` powers of ten, (length,), the highest first."""
    powers: NDArray[np.int64] = 10 ** np.arange(length, dtype=np.int64)[::-1]
    return powers


def _search_readings(probabilities: NDArray[np.float64], least_share: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Finds the most probable readings of n images by beam search.

    Args:
        probabilities: (n, 10) probabilities of the digits.
        least_share: drops a reading that is less probable than this share of the best.

    Returns:
        (m, n) digits, and the probability of each reading, (m,).
    """
    readings, likelihoods = np.empty((1, 0), np.intp), np.ones(1)
    for row in probabilities:
        extended = (likelihoods[:, None] * row).ravel()
        kept = np.flatnonzero(extended >= least_share * extended.max())
        if len(kept) > _HYPOTHESES:
            kept = kept[np.argpartition(-extended[kept], _HYPOTHESES)[:_HYPOTHESES]]
        readings = np.concatenate([readings[kept // 10], (kept % 10)[:, None]], axis=1)
        likelihoods = extended[kept]
    return readings, likelihoods
