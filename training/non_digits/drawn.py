"""Draws what a hand or a stamp draws with a pen: scribbles, letters, ticks, stars, geometry, waves and postmarks.

Each function takes a random generator and returns the ink of one picture.
"""

import numpy as np
from PIL import Image

from training.non_digits.pen import SIDE, arc, bend, curve, glyphs, slant, strokes

# Handwritten letters as strokes: knots of splines, right and down, in a box of 10 by 10. None of them looks like a digit.
LETTERS = {
    "A": ["0,10 5,0", "5,0 10,10", "2,6 8,6"],
    "C": ["9,2 6,0 2,2 1,5 2,8 6,10 9,8"],
    "E": ["8,0 1,0", "1,0 1,5 1,10", "1,5 6,5", "1,10 9,10"],
    "F": ["1,0 1,10", "1,0 9,0", "1,5 7,5"],
    "H": ["1,0 1,10", "9,0 9,10", "1,5 9,5"],
    "K": ["1,0 1,10", "9,0 1,6", "3,5 9,10"],
    "M": ["0,10 1,0", "1,0 5,7", "5,7 9,0", "9,0 10,10"],
    "N": ["1,10 1,0", "1,0 9,10", "9,10 9,0"],
    "P": ["1,0 1,10", "1,1 6,0 9,2 7,5 1,5"],
    "R": ["1,0 1,10", "1,1 6,0 9,2 7,5 1,5", "4,5 9,10"],
    "T": ["0,0 10,0", "5,0 5,10"],
    "V": ["0,0 5,10", "5,10 10,0"],
    "W": ["0,0 2,10", "2,10 5,2", "5,2 8,10", "8,10 10,0"],
    "X": ["0,0 10,10", "10,0 0,10"],
    "Y": ["0,0 5,5", "10,0 5,5", "5,5 5,10"],
    "a": ["8,3 5,2 2,4 2,8 5,10 8,7 8,3", "8,2 8,8 10,10"],
    "d": ["8,6 5,4 2,6 2,9 5,10 8,8", "8,0 8,8 10,10"],
    "e": ["1,6 8,6 8,3 5,1 2,3 1,6 3,10 9,9"],
    "f": ["8,1 6,0 4,2 4,10", "1,4 8,4"],
    "h": ["2,0 2,10", "2,6 5,4 8,5 8,10"],
    "k": ["2,0 2,10", "8,4 2,7", "4,6 9,10"],
    "m": ["1,3 1,10", "1,5 3,3 5,5 5,10", "5,5 7,3 9,5 9,10"],
    "n": ["2,3 2,10", "2,5 5,3 8,5 8,10"],
    "r": ["2,3 2,10", "2,6 4,3 8,3"],
    "u": ["2,3 2,8 4,10 8,7", "8,3 8,10"],
    "w": ["0,3 1,9 3,10 5,5", "5,5 6,10 8,10 10,3"],
    "x": ["1,3 9,10", "9,3 1,10"],
    "k+": ["2,10 5,2 4,0 2,3 2,10", "2,7 6,4 7,6 3,7", "3,7 9,10"],  # with a loop
    "f+": ["2,6 6,3 6,0 4,1 4,10 6,9 4,6 8,6"],
    "h+": ["1,8 5,2 4,0 2,3 2,10", "2,7 5,5 7,7 7,9 9,10"],
    "m+": ["0,6 2,3 2,10", "2,5 4,3 5,5 5,10", "5,5 7,3 8,5 8,9 10,10"],
}
_STROKES = {
    letter: [np.array([knot.split(",") for knot in line.split()], float) / 10 for line in lines]
    for letter, lines in LETTERS.items()
}


def pen(random: np.random.Generator) -> float:
    """Draws a pen's width, as a share of the height."""
    return float(random.uniform(0.07, 0.17))


def scribble(random: np.random.Generator) -> np.ndarray:
    """Draws one or two lines of eight to fourteen knots, which cross themselves: loops, or a zigzag to and fro."""
    if random.random() < 0.3:
        turns = int(random.integers(5, 11))
        across = np.linspace(0, 1, turns) + random.normal(0, 0.05, turns)
        up = np.where(np.arange(turns) % 2, 1, 0) + random.normal(0, 0.12, turns)
        lines = [curve(np.stack([across, up], axis=1), 80)]
    else:
        lines = [curve(random.random((random.integers(8, 15), 2)), 100) for _ in range(random.integers(1, 3))]
    return slant(strokes(lines, random.uniform(0.05, 0.12)), random, 40, 0.3, 0.3)


def stroke_letter(random: np.random.Generator) -> np.ndarray:
    """Draws a letter by its strokes, with every knot moved and the whole slanted."""
    names = list(_STROKES)
    lines = _STROKES[names[random.integers(len(names))]]
    moved = [curve(knots + random.normal(0, 0.035, knots.shape)) for knots in lines]
    shape = random.uniform(0.55, 1, 2) if random.random() < 0.5 else np.array([random.uniform(0.6, 0.9), 1])
    return slant(bend(strokes([line * shape for line in moved], pen(random)), random, 0.02), random, 12, 0.3, 0.1)


def tick(random: np.random.Generator) -> np.ndarray:
    """Draws a tick with a short left and a long right arm, or a cross of two bent strokes."""
    if random.random() < 0.25:
        ends = [np.array([[0, 0], [0.5, 0.5], [1, 1]]), np.array([[1, 0], [0.5, 0.5], [0, 1]])]
        lines = [curve(knots + random.normal(0, 0.06, knots.shape)) for knots in ends]
    else:
        short = random.uniform(0.3, 0.55)
        knots = np.array([[0, 1 - short], [random.uniform(0.2, 0.4), 1], [1, 0]]) + random.normal(0, 0.04, (3, 2))
        middle = (knots[1] + knots[2]) / 2 + random.normal(0, 0.05, 2)
        lines = [knots[:2], curve(np.stack([knots[1], middle, knots[2]]))]
    return slant(strokes(lines, pen(random)), random, 8, 0.1, 0.1)


def star(random: np.random.Generator) -> np.ndarray:
    """Draws a star of five to seven points, as an outline or in one line, or an asterisk of strokes."""
    points, first = int(random.integers(5, 8)), random.uniform(0, 360)
    corners = arc((0.5, 0.5), (0.5, 0.5), first, first + 360 * (1 - 1 / points), points)
    inner = arc((0.5, 0.5), (0.2, 0.2), first + 180 / points, first + 180 / points + 360 * (1 - 1 / points), points)
    form = random.integers(3)
    if form == 0:
        line = np.stack([corners, inner], axis=1).reshape(-1, 2)
    elif form == 1:
        line = corners[np.arange(points) * 2 % points] if points % 2 else np.stack([corners, inner], 1).reshape(-1, 2)
    else:
        return strokes([np.stack([np.array([0.5, 0.5]), corner]) for corner in corners], pen(random) * 0.7)
    return strokes([np.concatenate([line, line[:1]])], pen(random) * 0.6)


def arrow(random: np.random.Generator) -> np.ndarray:
    """Draws an arrow by hand, in any direction but up and down."""
    head = random.uniform(0.2, 0.4)
    shaft = curve(np.array([[0, 0.5], [0.5, 0.5], [1, 0.5]]) + random.normal(0, 0.06, (3, 2)))
    tip = shaft[-1]
    barbs = tip - head * np.array([[1, 0.8], [0, 0], [1, -0.8]])
    turn = np.radians(random.uniform(-50, 50) + 180 * random.integers(2))
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return strokes([(line - 0.5) @ matrix.T + 0.5 for line in (shaft, barbs)], pen(random) * 0.8)


def geometry(random: np.random.Generator) -> np.ndarray:
    """Draws a box, a triangle, a grid, a spiral, a cross in a box, steps or two shapes in each other."""
    width = pen(random) * 0.8
    box = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0.0]])
    triangle = np.array([[0.5, 0], [1, 1], [0, 1], [0.5, 0]])
    form = random.integers(7)
    if form == 0:
        lines = [box * [random.uniform(0.7, 1.3), 1]]
    elif form == 1:
        lines = [triangle if random.random() < 0.5 else 1 - triangle]
    elif form == 2:
        number = int(random.integers(3, 5))
        lines = [np.array([[place, 0], [place, 1]]) for place in np.linspace(0, 1, number)]
        lines += [line[:, ::-1] for line in lines]
        width = random.uniform(0.04, 0.1)
    elif form == 3:
        turns = random.uniform(2.2, 3.5)
        angles = np.linspace(0, 2 * np.pi * turns, 120)
        lines = [0.5 + 0.5 * angles[:, None] / angles[-1] * np.stack([np.cos(angles), np.sin(angles)], axis=1)]
        width = random.uniform(0.05, 0.08)
    elif form == 4:
        lines = [box, np.array([[0, 0], [1, 1.0]]), np.array([[1, 0], [0, 1.0]])]
    elif form == 5:
        steps = int(random.integers(3, 6))
        level = np.arange(steps + 1) / steps
        lines = [np.stack([np.repeat(level, 2)[:-1], np.repeat(level, 2)[1:]], axis=1)]
    else:
        inner = 0.5 + 0.5 * random.uniform(0.35, 0.6) * (2 * box - 1)
        lines = [arc((0.5, 0.5), (0.5, 0.5), 0, 360), inner if random.random() < 0.5 else triangle * 0.5 + 0.25]
    return slant(strokes(lines, width), random, 15, 0.1, 0.1)


def waves(random: np.random.Generator) -> np.ndarray:
    """Draws the wavy lines that cancel a stamp: three to seven in parallel."""
    number, length = int(random.integers(3, 8)), random.uniform(1, 2)
    x = np.linspace(0, 1, 40)
    wave = random.uniform(0.03, 0.09) * np.sin(2 * np.pi * (length * x * random.uniform(0.8, 2) + random.random()))
    lines = [np.stack([x, wave + place], axis=1) for place in np.linspace(0, random.uniform(0.5, 1), number)]
    return slant(strokes(lines, random.uniform(0.25, 0.5) / number), random, 20, 0.1, 0.2)


def postmark(random: np.random.Generator) -> np.ndarray:
    """Draws a ring or two with a date across and a place's name along the ring; in part of the images only a piece of it."""
    size = SIDE + 32
    width = random.uniform(0.03, 0.06)
    rings = [arc((0.5, 0.5), (0.5, 0.5), 0, 360, 80)]
    if random.random() < 0.7:
        inner = random.uniform(0.28, 0.36)
        rings.append(arc((0.5, 0.5), (inner, inner), 0, 360, 60))
    ink = strokes(rings, width).copy()
    letters = "".join(random.choice(list("ABCDEFGHIKLMNOPRSTUV"), random.integers(5, 11)))
    for letter, angle in zip(letters, np.linspace(-60, 60, len(letters)), strict=True):
        _paste(ink, _turned(glyphs(letter, "DejaVuSans-Bold"), -angle, 0.2), angle, 0.43, size)
    day = "".join(random.choice(list("0123456789"), 2))
    date = f"{day}.{random.integers(1, 13)}.{random.integers(20, 99)}"
    _paste(ink, _turned(glyphs(date, "DejaVuSans-Bold"), 0, random.uniform(0.2, 0.28)), 0, 0, size)
    if random.random() < 0.4:  # cut at one side, with more than half of the ring left
        kept = int(size * random.uniform(0.6, 0.85))
        ink = np.rot90(ink, int(random.integers(4)))[:, :kept]
    return slant(np.minimum(ink, 1), random, 60, 0, 0.05)


def _turned(ink: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """Turns ink and scales it down."""
    picture = Image.fromarray(np.rint(255 * ink).astype(np.uint8))
    small = picture.resize((max(1, round(ink.shape[1] * scale)), max(1, round(ink.shape[0] * scale))), Image.Resampling.BOX)
    return np.asarray(small.rotate(degrees, Image.Resampling.BILINEAR, expand=True)) / 255


def _paste(ink: np.ndarray, piece: np.ndarray, angle: float, radius: float, size: int) -> None:
    """Adds a piece at an angle from the top of the ring and a distance from its centre."""
    x = size / 2 + radius * SIDE * np.sin(np.radians(angle)) - piece.shape[1] / 2
    y = size / 2 - radius * SIDE * np.cos(np.radians(angle)) - piece.shape[0] / 2
    top, left = max(0, round(y)), max(0, round(x))
    place = ink[top : top + piece.shape[0], left : left + piece.shape[1]]
    np.maximum(place, piece[: place.shape[0], : place.shape[1]], out=place)
