"""Lexicons: the codes that a field may say, such as the postcodes of a country."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.errors import CannotStart

LONGEST = 18  # digits of a code: as many as fit into 64 bits
UNLISTED = 0.01  # share of fields that are taken to say what no lexicon has: new codes, slips of the pen

# Of a length with no more codes than _FEW, all are weighed. Of one with more, so many readings of the images are followed,
# and none that could be that much less probable than another; the rest is taken to be in no lexicon.
_FEW = 20_000
_HYPOTHESES = 1024
_LEAST_SHARE = 1e-6


class LexiconError(CannotStart):
    """A lexicon can't be used; the message says which, and why."""


class Lexicon:
    """A set of codes, each a row of digits; leading zeros count."""

    def __init__(self, codes: dict[int, NDArray[np.int64]]):
        """Takes, by their length, the codes as numbers, in ascending order, none twice."""
        self._codes = codes
        self._digits = {
            length: (numbers[:, None] // _powers(length) % 10).astype(np.uint8)
            for length, numbers in codes.items()
            if len(numbers) <= _FEW
        }

    def __len__(self) -> int:
        return sum(map(len, self._codes.values()))

    @classmethod
    def load(cls, file: Path) -> "Lexicon":
        """Reads a file of codes, one a line; empty lines are passed over.

        Raises:
            LexiconError: it can't be read, has a line that is no row of 1 to 18 digits, or no code at all.
        """
        try:
            content = file.read_bytes().replace(b"\r\n", b"\n") + b"\n"
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
                    f"the lexicon {file}, line {number}: {line[:40].decode(errors='replace')!r} is no code, "
                    f"expected 1 to {LONGEST} digits"
                )
            numbers = np.sort((rows - ord("0")) @ _powers(length))
            codes[length] = numbers[np.append(True, numbers[1:] > numbers[:-1])]  # np.unique takes ten times as long
        if not codes:
            raise LexiconError(f"the lexicon {file} is empty, expected a code a line")
        return cls(codes)

    def read(self, probabilities: NDArray[np.float64]) -> tuple[NDArray[np.intp], float, float]:
        """What n images most probably show.

        By Bayes' rule, where all codes of the lexicon are as frequent, one field in a hundred says what is not in it, and no
        image has a say in what another shows.

        Args:
            probabilities: (n, 10) of each digit, calibrated.

        Returns:
            The most probable code, (n,) digits, or, where it is more probable that they show none, the most probable digits;
            the probability that these are right; and that the field says something that is not in the lexicon.
        """
        length = len(probabilities)
        codes, likelihoods = self._weigh(probabilities)
        share = len(self._codes.get(length, ())) / 10.0**length
        if share == 1:  # every row of digits is a code
            return codes[likelihoods.argmax()], float(likelihoods.max()), 0.0
        mass = float(likelihoods.sum())
        listed = (1 - UNLISTED) / share * mass if share else 0.0
        unlisted = UNLISTED / (1 - share) * max(1 - mass, 0)
        evidence = listed + unlisted or 1.0
        if listed > unlisted:
            best = likelihoods.argmax()
            return codes[best], float(likelihoods[best] / mass * listed / evidence), unlisted / evidence
        digits = probabilities.argmax(axis=1)
        likelihood = float(probabilities.max(axis=1).prod())
        weight = (1 - UNLISTED) / share if (codes == digits).all(axis=1).any() else UNLISTED / (1 - share)
        return digits, weight * likelihood / evidence, unlisted / evidence

    def _weigh(self, probabilities: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The codes that n images may mean, (m, n) digits, and how probable the images make each, (m,)."""
        length = len(probabilities)
        if length in self._digits:
            digits = self._digits[length].astype(np.intp)
            return digits, probabilities[np.arange(length), digits].prod(axis=1)
        numbers = self._codes.get(length, np.empty(0, np.int64))
        readings, likelihoods = _readings(probabilities, _LEAST_SHARE * len(numbers) / 10.0**length)
        wanted = readings @ _powers(length)
        places = np.searchsorted(numbers, wanted)
        found = places < len(numbers)
        found[found] = numbers[places[found]] == wanted[found]
        return readings[found], likelihoods[found]


def load_all(directory: Path) -> dict[str, Lexicon]:
    """Every NAME.txt in a directory, by its name. Raises LexiconError."""
    if not directory.is_dir():
        raise LexiconError(f"there is no directory of lexicons {directory}")
    return {file.stem: Lexicon.load(file) for file in sorted(directory.glob("*.txt"))}


def _powers(length: int) -> NDArray[np.int64]:
    """Of ten, as many as a code has digits, the highest first."""
    powers: NDArray[np.int64] = 10 ** np.arange(length, dtype=np.int64)[::-1]
    return powers


def _readings(probabilities: NDArray[np.float64], least_share: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The most probable readings of n images, (m, n) digits, with the probability of each, (m,).

    None is less probable than `least_share` of the most probable one.
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
