"""Lists the kinds of images that show no digit."""

import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from serving.imaging.framing import frame
from training.dataset import Examples
from training.non_digits import drawn, of_digits, pictures, printed
from training.non_digits.groups import Group
from training.non_digits.printed import Draw, character


@dataclass(frozen=True)
class Kind:
    """Images of one kind.

    Attributes:
        name: of the kind.
        group: `trained` if training makes this kind too, in its own way; `held_out` if it never does; `digit_shaped` if a
            person may take such an image for a digit.
        images: (N, 28, 28) uint8, 0 paper to 255 ink, framed as MNIST frames digits.
    """

    name: str
    group: Group
    images: np.ndarray


def evaluation_kinds(digits: Examples, seed: int, count: int) -> list[Kind]:
    """Draws `count` images of every kind.

    Args:
        digits: digits that training has not seen, of which halves, pairs and others are made.
        seed: of all draws. Each kind draws independently of the others.
        count: number of images per kind.

    Raises:
        ValueError: a digit has no images.
    """
    kinds = []
    for group, name, draw in _kinds(digits):
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        kinds.append(Kind(name, group, np.stack([_framed(draw, random) for _ in range(count)])))
    return kinds


def _kinds(examples: Examples) -> list[tuple[Group, str, Draw]]:
    digits = of_digits.Digits(examples)

    def half(side: str, like_digits: bool = False) -> Draw:
        return lambda random: of_digits.half(digits, random, side, like_digits)

    return [
        ("trained", "two or three digits", partial(of_digits.two, digits)),
        ("trained", "noise", pictures.noise),
        ("trained", "pieces of photos", pictures.photo_piece),
        ("trained", "clear capitals", character(printed.CAPITALS, printed.PLAIN)),
        ("trained", "clear small letters", character(printed.SMALL, printed.PLAIN)),
        ("trained", "upper halves", half("upper")),
        ("trained", "left halves", half("left")),
        ("trained", "scribbles", drawn.scribble),
        ("trained", "letters of script fonts", printed.script_letter),
        ("trained", "handwritten letters", drawn.stroke_letter),
        ("trained", "words", printed.word),
        ("trained", "geometry", drawn.geometry),
        ("trained", "crossed-out digits", partial(of_digits.crossed_out, digits)),
        ("trained", "digits turned by 90 degrees", partial(of_digits.turned, digits)),
        ("trained", "ticks", _either(drawn.tick, character(printed.TICKS, printed.SANS[:1]))),
        ("trained", "barcodes", pictures.barcode),
        ("held_out", "digits upside down", partial(of_digits.upside_down, digits)),
        ("held_out", "postmarks", drawn.postmark),
        ("held_out", "rubber stamps", printed.rubber_stamp),
        ("held_out", "wavy lines", drawn.waves),
        ("held_out", "Greek and Cyrillic letters", character(printed.GREEK_AND_CYRILLIC, printed.SANS)),
        ("held_out", "Hebrew and Arabic letters", character(printed.HEBREW_AND_ARABIC, printed.SANS[:2])),
        ("held_out", "Armenian, Georgian and Tifinagh letters", character(printed.OTHER_SCRIPTS, printed.SANS[:1])),
        ("held_out", "marks", character(printed.MARKS, printed.SANS)),
        ("held_out", "currency signs", character(printed.CURRENCIES, printed.SANS)),
        ("held_out", "arrows", _either(drawn.arrow, character(printed.ARROWS, printed.SANS[:1]))),
        ("held_out", "stars", drawn.star),
        ("held_out", "smileys", printed.smiley),
        ("held_out", "logos", character(printed.LOGOS, printed.SANS[:1])),
        ("held_out", "pieces of QR codes", pictures.qr_piece),
        ("digit_shaped", "bars and brackets", character(printed.BARS, printed.PLAIN[:9])),
        ("digit_shaped", "D, O, Q, o", character(printed.ROUND, printed.PLAIN)),
        ("digit_shaped", "+ and t", character(printed.PLUS, printed.PLAIN)),
        ("digit_shaped", "G and b", character(printed.LIKE_SIX, printed.PLAIN)),
        ("digit_shaped", "B, S, Z, g, i, j, q, s, z", character(printed.OTHER_LIKE_DIGITS, printed.PLAIN)),
        ("digit_shaped", "commas and dots", character(printed.COMMAS, printed.PLAIN)),
        ("digit_shaped", "lower halves", half("lower", True)),
        ("digit_shaped", "upper halves like digits", half("upper", True)),
        ("digit_shaped", "left halves like digits", half("left", True)),
        ("digit_shaped", "right halves", half("right", True)),
    ]


def _either(one: Draw, other: Draw) -> Draw:
    return lambda random: (one if random.random() < 0.5 else other)(random)


def _framed(draw: Draw, random: np.random.Generator) -> np.ndarray:
    """Frames one picture. Ink below an eighth is paper, as the framer of crops would find."""
    ink = draw(random)
    return frame(np.where(ink < 0.125, 0, ink))
