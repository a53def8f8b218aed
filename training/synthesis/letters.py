"""Letters: printed, from the fonts of nine Python packages, and handwritten, from stroke models.

Letters that look like a digit are left out: nothing in 28x28 pixels tells an O from a 0, or a Z from a 2.
"""

from functools import lru_cache
from importlib.metadata import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from serving.imaging.framing import frame
from training.synthesis.strokes import Hand, Points, arc, curve, join, line

FONTS = (
    "font-amatic-sc",
    "font-caladea",
    "font-fredoka-one",
    "font-hanken-grotesk",
    "font-intuitive",
    "font-manrope",
    "font-roboto",
    "font-source-sans-pro",
    "font-source-serif-pro",
)
_CAPITALS_ONLY = "font-amatic-sc"  # draws capitals for small letters
LETTERS = "ACEFHKLMNPRTUVWXYacdefhkmnprtuvwxy"  # without o, O, Q, D, B, G, b, g, I, i, j, J, l, S, s, Z, z and q
_SIZE = 40  # pixels of a font's em
_HAND = Hand(aspect=(0.55, 1.1), slant=(0.1, 0.2), turn=8, bend=0.035)


def printed(text: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws `text` in a random font, half the time slanted, and frames the result as MNIST frames digits."""
    package = FONTS[random.integers(len(FONTS))]
    fonts = _load(package)
    font = fonts[random.integers(len(fonts))]
    if package == _CAPITALS_ONLY:
        text = "".join(character for character in text if not character.islower()) or "A"
    canvas = Image.new("L", (40 + _SIZE * len(text), 2 * _SIZE))
    ImageDraw.Draw(canvas).text((20, 15), text, fill=255, font=font)
    if random.random() < 0.5:
        slant = random.uniform(-0.3, 0.3)
        canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, (1, slant, -slant * _SIZE, 0, 1, 0))
    return frame(np.asarray(canvas) / 255)


def letter(random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws a printed letter, (28, 28) uint8."""
    return printed(LETTERS[random.integers(len(LETTERS))], random)


def word(random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws two to four printed letters, framed as one digit, (28, 28) uint8."""
    chosen = random.integers(len(LETTERS), size=random.integers(2, 5))
    return printed("".join(LETTERS[index] for index in chosen), random)


def handwritten(random: np.random.Generator) -> NDArray[np.uint8]:
    """Draws a letter from its stroke model, (28, 28) uint8."""
    models = list(_STROKES.values())
    strokes = [stroke + random.normal(0, 0.03, stroke[:1].shape) for stroke in models[random.integers(len(models))]]
    return _HAND.write(strokes, random)


@lru_cache(len(FONTS))
def _load(package: str) -> list[ImageFont.FreeTypeFont]:
    paths = [Path(str(file.locate())) for file in files(package) or () if file.suffix in (".ttf", ".otf")]
    return [ImageFont.truetype(str(path), _SIZE) for path in sorted(paths)]


_STROKES: dict[str, list[Points]] = {
    "A": [line((0, 1), (0.5, 0), (1, 1)), line((0.2, 0.65), (0.8, 0.65))],
    "C": [curve([(0.95, 0.15), (0.5, 0), (0.05, 0.5), (0.5, 1), (0.95, 0.85)])],
    "E": [line((0.9, 0), (0.1, 0), (0.1, 1), (0.9, 1)), line((0.1, 0.5), (0.75, 0.5))],
    "F": [line((0.9, 0), (0.1, 0), (0.1, 1)), line((0.1, 0.45), (0.75, 0.45))],
    "H": [line((0.1, 0), (0.1, 1)), line((0.9, 0), (0.9, 1)), line((0.1, 0.5), (0.9, 0.5))],
    "K": [line((0.1, 0), (0.1, 1)), line((0.9, 0), (0.1, 0.55), (0.95, 1))],
    "L": [line((0.15, 0), (0.15, 1), (0.9, 1))],
    "M": [line((0, 1), (0.1, 0), (0.5, 0.6), (0.9, 0), (1, 1))],
    "N": [line((0.1, 1), (0.1, 0), (0.9, 1), (0.9, 0))],
    "R": [line((0.1, 1), (0.1, 0)), join(curve([(0.1, 0), (0.75, 0.05), (0.8, 0.4), (0.15, 0.5)]), line((0.15, 0.5), (0.9, 1)))],
    "T": [line((0, 0), (1, 0)), line((0.5, 0), (0.5, 1))],
    "U": [join(line((0.1, 0), (0.1, 0.6)), curve([(0.1, 0.6), (0.5, 1), (0.9, 0.6)]), line((0.9, 0.6), (0.9, 0)))],
    "V": [line((0.05, 0), (0.5, 1), (0.95, 0))],
    "W": [line((0, 0), (0.25, 1), (0.5, 0.35), (0.75, 1), (1, 0))],
    "X": [line((0.05, 0), (0.95, 1)), line((0.95, 0), (0.05, 1))],
    "a": [arc((0.45, 0.6), (0.4, 0.4), 20, 350), curve([(0.85, 0.25), (0.82, 0.75), (1, 1)])],
    "c": [curve([(0.9, 0.25), (0.5, 0.1), (0.08, 0.5), (0.5, 0.9), (0.92, 0.75)])],
    "d": [arc((0.4, 0.7), (0.38, 0.3), 20, 350), line((0.8, 0), (0.8, 1))],
    "e": [curve([(0.1, 0.55), (0.85, 0.5), (0.5, 0.1), (0.08, 0.55), (0.45, 0.95), (0.95, 0.8)])],
    "f": [curve([(0.9, 0.1), (0.6, 0), (0.45, 0.3), (0.45, 1)]), line((0.15, 0.45), (0.8, 0.42))],
    "h": [line((0.15, 0), (0.15, 1)), curve([(0.15, 0.6), (0.5, 0.42), (0.8, 0.6), (0.85, 1)])],
    "k": [line((0.15, 0), (0.15, 1)), line((0.8, 0.4), (0.15, 0.7), (0.85, 1))],
    "m": [join(line((0.05, 0.1), (0.05, 0.9)), curve([(0.08, 0.4), (0.3, 0.1), (0.47, 0.4), (0.5, 0.9)])),
          curve([(0.5, 0.4), (0.75, 0.1), (0.92, 0.4), (0.95, 0.9)])],
    "n": [line((0.1, 0.1), (0.1, 0.9)), curve([(0.12, 0.45), (0.5, 0.1), (0.85, 0.4), (0.9, 0.9)])],
    "p": [line((0.15, 0.15), (0.15, 1)), curve([(0.15, 0.25), (0.6, 0.1), (0.9, 0.35), (0.6, 0.62), (0.15, 0.5)])],
    "r": [line((0.2, 0.1), (0.2, 0.9)), curve([(0.22, 0.4), (0.5, 0.12), (0.9, 0.2)])],
    "t": [join(line((0.45, 0), (0.45, 0.8)), curve([(0.45, 0.8), (0.6, 1), (0.9, 0.9)])), line((0.1, 0.3), (0.85, 0.3))],
    "u": [curve([(0.08, 0.1), (0.15, 0.7), (0.5, 0.9), (0.85, 0.6), (0.88, 0.1)]), line((0.88, 0.1), (0.92, 0.9))],
    "w": [curve([(0, 0.1), (0.22, 0.9), (0.5, 0.3), (0.75, 0.9), (1, 0.1)])],
    "x": [curve([(0.05, 0.1), (0.5, 0.5), (0.95, 0.9)]), curve([(0.95, 0.1), (0.5, 0.5), (0.05, 0.9)])],
}  # fmt: skip
