"""Draws what fonts contain: letters, letters of other scripts, marks, signs and words.

The fonts are Matplotlib's; training uses none of them.
"""

import string
import unicodedata
from collections.abc import Callable

import numpy as np

from training.non_digits.pen import arc, bend, glyphs, slant, strokes

Draw = Callable[[np.random.Generator], np.ndarray]  # returns the ink of one picture

PLAIN = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique")  # the first has most characters, the last no Hebrew

# A person who expects a digit may read these as one, in some font or hand. They are counted apart, as digit-shaped.
BARS = "|/\\()[]lI"
ROUND = "DOQo"
PLUS = "+t"
LIKE_SIX = "Gb"
OTHER_LIKE_DIGITS = "BSZgijqsz"  # 8, 5, 2, 9, 1, 1, 9, 5, 2
CAPITALS = "".join(sorted(set(string.ascii_uppercase) - set(BARS + ROUND + LIKE_SIX + OTHER_LIKE_DIGITS)))
SMALL = "".join(sorted(set(string.ascii_lowercase) - set(BARS + ROUND + PLUS + LIKE_SIX + OTHER_LIKE_DIGITS)))

GREEK_AND_CYRILLIC = "ΓΔΛΞΠΣΦΨΩαβγεζηλμξπρτφχψωГДЖИЛПФЦШЩЫЮЯагджийклмнптфцшщыюяђћѣѫ"
HEBREW_AND_ARABIC = "אבגהחטכלמנעצץקשתبتثجحخدذزسشصضطظعغفقكلمني"
OTHER_SCRIPTS = (
    "ԱԲԴԵԷԸԹԺԽԾՂՃՄՆՈՊՌՐՓՔՖաբդեէըթժխհղճմնպռստրւփքֆ"  # Armenian
    "თილრტუფქღყჩძჭ"  # Georgian
    "ⴳⴷⴹⴼⴽⵀⵃⵄⵅⵇⵉⵍⵎⵖⵟⵡⵢⵣⵥ"  # Tifinagh
)

MARKS = '?&%#@*;:!=~^"{}<>§¶©-_'
ARROWS = "←→↔↖↘↙⇐⇒⇔↩↪↶↷➔➜➤"
CURRENCIES = "€$£¥₩₪₫₭₮₱₴₹₺₽¤"
SMILEYS = "☺☻☹"
LOGOS = "★☆♥♡♦♢♣♧♠♤☎☂☀☁☃✈✉✂⚓☠☢☯☮⚑⚡♪♫♨⌂✿❄"
COMMAS = ",'.`"
TICKS = "✓✔✗✘☑☒"
WORDS = (
    *("to", "und", "via", "rue", "post", "city", "road", "zip", "box", "attn", "strasse", "calle", "north", "paid"),
    *("airmail", "fragile", "urgent", "ref", "no", "St", "GmbH"),
)
STAMPS = ("PAID", "AIR MAIL", "COPY", "PRIORITY", "RETURN", "URGENT", "VOID", "R", "TAXE", "BY AIR")


def character(characters: str, fonts: tuple[str, ...]) -> Draw:
    """Draws one of the characters in one of the fonts, clearly: turned by at most 4 degrees."""

    def draw(random: np.random.Generator) -> np.ndarray:
        chosen = glyphs(str(random.choice(list(characters))), _font(fonts, random), int(random.integers(3)))
        return slant(chosen, random, 4, 0.08, 0.12)

    return draw


def smiley(random: np.random.Generator) -> np.ndarray:
    """Draws a glyph, or a face with round or oval outline and another mouth."""
    if random.random() < 0.3:
        return character(SMILEYS, SANS[:1])(random)
    wide, mouth, eye = random.uniform(0.4, 0.5), random.uniform(0.12, 0.28), random.uniform(0.12, 0.22)
    sad = random.random() < 0.4
    bow = arc((0.5, 0.78 if sad else 0.55), (0.25, mouth), *((200, 340) if sad else (20, 160)))
    eyes = [np.array([[0.5 + side * eye, 0.38]]) for side in (-1, 1)]
    return strokes([arc((0.5, 0.5), (wide, 0.5), 0, 360, 60), bow, *eyes], random.uniform(0.05, 0.1))


def word(random: np.random.Generator) -> np.ndarray:
    """Draws a word of a letter, in capitals or small letters, upright or slanted."""
    text = str(random.choice(WORDS))
    text = str(random.choice([text, text.upper(), text.capitalize()]))
    return slant(glyphs(text, _font(PLAIN, random), int(random.integers(4))), random, 10, 0.3, 0.2)


def rubber_stamp(random: np.random.Generator) -> np.ndarray:
    """Draws a word in a frame of one or two lines, turned by up to 25 degrees."""
    text = glyphs(str(random.choice(STAMPS)), _font(PLAIN, random), int(random.integers(5)))
    room, line = int(random.integers(10, 24)), int(random.integers(5, 10))
    stamp = np.pad(np.pad(text, room), line, constant_values=1)
    if random.random() < 0.4:
        stamp = np.pad(np.pad(stamp, line), line, constant_values=1)
    return slant(stamp, random, 25, 0.05, 0.1)


def script_letter(random: np.random.Generator) -> np.ndarray:
    """Draws a letter of a script or italic font, bent and slanted like handwriting."""
    letter = str(random.choice(list(CAPITALS + SMALL)))
    font = _font(("script", "script", "cmmi10", "cmsy10", "STIXGeneralItalic", "DejaVuSerif-Italic"), random)
    if font == "cmsy10":
        letter = letter.upper()  # it holds calligraphic capitals only
        letter = letter if letter in CAPITALS else "A"
    if font == "script":
        letter, font = _script_letter(letter), "STIXGeneral"
    return slant(bend(glyphs(letter, font, int(random.integers(1, 5))), random, 0.035), random, 12, 0.25, 0.2)


def _font(fonts: tuple[str, ...], random: np.random.Generator) -> str:
    return fonts[random.integers(len(fonts))]


def _script_letter(letter: str) -> str:
    """Returns a letter of Unicode's mathematical script, which lacks those that were there before it."""
    name = unicodedata.name(letter).replace("LATIN", "SCRIPT").replace(" LETTER", "")
    try:
        return unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:
        return unicodedata.lookup(name)
