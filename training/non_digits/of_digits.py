"""Makes non-digits of digits: two in one image, halves, turned and crossed-out digits.

Each function takes digits and a random generator and returns the ink of one picture.
"""

import numpy as np

from training.dataset import Examples
from training.non_digits.pen import curve, slant, strokes

ALL = tuple(range(10))

# Digits whose part, or which turned, a person may read as a digit.
HALVES_LIKE_DIGITS = {"upper": (1, 6, 7, 8, 9), "lower": ALL, "left": (0, 1, 6), "right": ALL}
TURNED_BY_90 = (2, 3, 4, 5, 6, 7, 8, 9)  # 0 stays a 0, and a slanted 1 may stay a 1
TURNED_BY_180 = (3, 4, 7)  # the others stay digits, or become others


class Digits:
    """Draws single digits.

    Raises:
        ValueError: a digit of which an image is wanted has none.
    """

    def __init__(self, examples: Examples):
        self._images = examples.images
        inked = examples.images.any(axis=(1, 2))
        self._of_digit = [np.flatnonzero(inked & (examples.labels == digit)) for digit in ALL]

    def one(self, random: np.random.Generator, wanted: tuple[int, ...] = ALL) -> np.ndarray:
        """Returns the ink, (28, 28), of an image of one of the wanted digits."""
        image: np.ndarray = self._images[random.choice(self._of_digit[wanted[random.integers(len(wanted))]])]
        return image / 255


def two(digits: Digits, random: np.random.Generator) -> np.ndarray:
    """Puts two digits side by side, or three in one image of six: touching, overlapping slightly, or apart."""
    pieces = [_box(digits.one(random)) for _ in range(2 + (random.random() < 1 / 6))]
    canvas = np.zeros((40, 120))
    place = 20
    for piece in pieces:
        top = 8 + int(random.integers(-3, 4)) + (24 - piece.shape[0]) // 2
        part = canvas[top : top + piece.shape[0], place : place + piece.shape[1]]
        np.maximum(part, piece, out=part)
        place += piece.shape[1] + int(random.integers(-2, 6))
    return canvas


def half(digits: Digits, random: np.random.Generator, side: str, like_digits: bool = False) -> np.ndarray:
    """Cuts a digit in two near the middle and keeps one part.

    Args:
        digits: to cut.
        random: draws the digit and the place of the cut.
        side: the part that stays: upper, lower, left or right.
        like_digits: takes the digits whose part looks like a digit, instead of the others.
    """
    listed = HALVES_LIKE_DIGITS[side]
    box = _box(digits.one(random, tuple(digit for digit in ALL if (digit in listed) == like_digits)))
    height, width = (max(2, round(length * random.uniform(0.42, 0.58))) for length in box.shape)
    parts = {"upper": box[:height], "lower": box[-height:], "left": box[:, :width], "right": box[:, -width:]}
    return parts[side]


def turned(digits: Digits, random: np.random.Generator) -> np.ndarray:
    """Turns a digit by 90 degrees to the left or the right, give or take 10."""
    return slant(np.rot90(digits.one(random, TURNED_BY_90), random.choice([1, 3])), random, 10, 0, 0)


def upside_down(digits: Digits, random: np.random.Generator) -> np.ndarray:
    """Turns a digit by 180 degrees."""
    return np.rot90(digits.one(random, TURNED_BY_180), 2)


def crossed_out(digits: Digits, random: np.random.Generator) -> np.ndarray:
    """Strikes a digit out: with a cross, two or three lines, or a zigzag. The strokes reach beyond the digit.

    A single line is left out, because a 7 with a line across is a 7.
    """
    box = _box(digits.one(random))
    big = np.pad(box, 8).repeat(4, axis=0).repeat(4, axis=1)
    height, width = big.shape
    form = random.integers(3)
    if form == 0:
        ends = [np.array([[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]), np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])]
        lines = [curve(knots + random.normal(0, 0.04, knots.shape)) for knots in ends]
    elif form == 1:
        places = 0.5 + random.uniform(0.14, 0.2) * (np.arange(random.integers(2, 4)) - 0.5 * random.uniform(0.8, 1.5))
        lean = random.uniform(-0.3, 0.3)
        lines = [np.array([[0.08, place + lean / 2], [0.92, place - lean / 2]]) for place in places]
    else:
        turns = int(random.integers(5, 9))
        across = np.linspace(0.1, 0.9, turns)
        up = np.where(np.arange(turns) % 2, 0.25, 0.75) + random.normal(0, 0.05, turns)
        lines = [curve(np.stack([across, up], axis=1), 60)]
    drawn = strokes(lines, random.uniform(0.06, 0.11))[16:-16, 16:-16]
    rows = np.linspace(0, len(drawn) - 1, height).astype(int)
    columns = np.linspace(0, drawn.shape[1] - 1, width).astype(int)
    struck: np.ndarray = np.maximum(big, drawn[rows][:, columns])
    return struck


def _box(ink: np.ndarray) -> np.ndarray:
    """Cuts the paper around ink off."""
    rows, columns = (np.flatnonzero((ink > 0.2 * ink.max()).any(axis=axis)) for axis in (1, 0))
    box: np.ndarray = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return box
