"""Rubbish: images that show no whole digit, framed as a digit would be.

Some kinds are left out on purpose, so that a version's card can state how a network treats what it never saw: marks such as
? & % # @ *, postmarks, other scripts, wavy cancellations, ticks and drawings. Upright bars are left out, as a bar is a 1.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from serving.imaging.framing import frame
from training.dataset import Examples
from training.synthesis.letters import handwritten, letter, word
from training.synthesis.other_pens import crop_ink
from training.synthesis.strokes import curve

Image = NDArray[np.uint8]
Draw = Callable[[Examples, np.random.Generator], Image]

_CANVAS = 64  # pixels per side
_NOT_A_LINE = (0, 2, 3, 4, 5, 6, 7, 8, 9)  # digits that hide or change another below them
_BAR = 0.36  # an image whose ink is narrower than this share of its height may be a 1


def rubbish(digits: Examples, count: int, random: np.random.Generator) -> Image:
    """Draws `count` images of all kinds, mixed by their shares.

    Args:
        digits: training digits; several kinds are made from pieces of them.
        count: number of images.
        random: draws kinds and shapes.

    Returns:
        (count, 28, 28) uint8, 0 paper to 255 ink, each with some ink.
    """
    draws, shares = zip(*KINDS.values(), strict=True)
    images = np.empty((count, 28, 28), np.uint8)
    for index, kind in enumerate(random.choice(len(draws), count, p=np.array(shares) / sum(shares)).tolist()):
        image = draws[kind](digits, random)
        while not image.any() or _is_bar(image):
            image = draws[kind](digits, random)
        images[index] = image
    return images


def _is_bar(image: Image) -> bool:
    _, _, width, height = cv2.boundingRect(image)
    return bool(width < _BAR * height)


def _pick(digits: Examples, random: np.random.Generator) -> Image:
    image: Image = digits.images[random.integers(len(digits))]
    return image


def _half(digits: Examples, random: np.random.Generator) -> Image:
    """Keeps the upper or the left half of a digit, a third to two thirds of its ink, cut at an angle.

    Halves that look like a digit are left out: most right and lower halves, the half of a 0 or of a 1.
    """
    turn, labels = ((0.0, (0, 2, 3, 4, 5)), (np.pi / 2, (2, 3, 4, 5, 7, 8, 9)))[random.integers(2)]
    image = _pick_of(labels, digits, random)
    angle = turn + (random.normal(0, 0.3) if random.random() < 0.4 else 0)
    rows, columns = np.indices(image.shape)
    place = np.cos(angle) * rows + np.sin(angle) * columns
    cut = np.quantile(place[image > 80], random.uniform(0.35, 0.65))
    return frame(np.where(place < cut, image, 0) / 255)


def _several(digits: Examples, random: np.random.Generator) -> Image:
    """Puts two or three digits of different sizes side by side, from overlapping to apart, or one over another."""
    canvas, left = np.zeros((48, 130), np.uint8), 0
    corrected = random.random() < 0.15  # one digit over another; a 1 or the same digit might leave one digit
    labels = random.choice(_NOT_A_LINE, 2, replace=False) if corrected else ()
    for index in range(2 if corrected or random.random() < 0.75 else 3):
        box = crop_ink(_pick_of((int(labels[index]),), digits, random) if corrected else _pick(digits, random))
        scale = random.uniform(0.75, 1.3)
        size = max(3, round(box.shape[1] * scale)), max(3, round(box.shape[0] * scale))
        resized = cv2.resize(box, size, interpolation=cv2.INTER_LINEAR)
        top = (48 - size[1]) // 2 + int(random.integers(-5, 6))
        place = canvas[top : top + size[1], left : left + size[0]]
        np.maximum(place, resized, out=place)
        left += int(random.integers(0, 5)) if corrected else max(6, size[0] + int(random.integers(-5, 9)))
    return frame(canvas / 255)


def _scribble(digits: Examples, random: np.random.Generator) -> Image:
    """Draws a random line that crosses itself, smooth or with corners, from loose to dense."""
    knots = int(random.integers(4, 18 if random.random() < 0.4 else 9))
    if random.random() < 0.5:
        points = random.uniform(8, _CANVAS - 8, (knots, 2))
    else:
        points = np.cumsum(random.normal(0, 10, (knots, 2)), axis=0)
        points += _CANVAS / 2 - points.mean(axis=0)
    return _pen([curve(points) if random.random() < 0.75 else points], random)


def _geometry(digits: Examples, random: np.random.Generator) -> Image:
    """Draws dots, dashes, bars, grids, polygons, rings with something inside, or spirals."""
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    middle, pen = _CANVAS // 2, int(random.integers(2, 8))
    width, height = (int(side) for side in random.integers(8, 28, 2))
    match int(random.integers(8)):
        case 0:
            cv2.ellipse(canvas, (middle, middle), (width, height), 0, 0, 360, 255, -1)
        case 1:  # a dash
            rise = int(random.integers(-10, 11))
            ends = (middle - width, middle - rise), (middle + width, middle + rise)
            cv2.line(canvas, *ends, 255, int(random.integers(2, 16)))
        case 2:  # bars side by side, or a grid
            grid = random.random() < 0.3
            for bars in (canvas, canvas.T) if grid else ((canvas, canvas.T)[random.integers(2)],):
                for at in np.linspace(8, _CANVAS - 8, int(random.integers(2, 6))).astype(int):
                    bars[8:-8, max(at - pen // 2, 0) : at + (pen + 1) // 2] = 255
        case 3:
            cv2.polylines(canvas, [_polygon(28, random)], True, 255, pen)
        case 4:
            cv2.fillPoly(canvas, [_polygon(28, random)], 255)
        case 5:  # an open polygon: corners, brackets, zigzags
            cv2.polylines(canvas, [_polygon(28, random)[: int(random.integers(3, 5))]], False, 255, pen)
        case 6:  # a ring with something inside
            cv2.ellipse(
                canvas, (middle, middle), (28, int(random.integers(20, 29))), 0, 0, 360, 255, int(random.integers(2, 5))
            )
            for _ in range(int(random.integers(1, 4))):
                inside = _polygon(int(random.integers(5, 18)), random) + random.integers(-6, 7, 2).astype(np.int32)
                cv2.polylines(
                    canvas, [inside[: int(random.integers(2, 7))]], random.random() < 0.7, 255, int(random.integers(1, 5))
                )
        case _:
            if random.random() < 0.4:
                turns = np.linspace(0, random.uniform(1.6, 4) * 2 * np.pi, 90)
                spiral = (
                    turns[:, None] / turns[-1] * 27 * np.stack([np.cos(turns), random.choice([-1, 1]) * np.sin(turns)], 1)
                )
                return _pen([spiral + middle], random)
            for _ in range(int(random.integers(2, 7))):
                at, axes = random.integers(8, _CANVAS - 8, 2), random.integers(2, 9, 2)
                cv2.ellipse(canvas, at.tolist(), axes.tolist(), 0, 0, 360, 255, -1)
    return frame(canvas / 255)


def _polygon(radius: int, random: np.random.Generator) -> NDArray[np.int32]:
    """Returns the corners of an irregular polygon about the middle of the canvas, (3 to 6, 2)."""
    corners = int(random.integers(3, 7))
    angles = 2 * np.pi * (np.arange(corners) + random.uniform(-0.15, 0.15, corners)) / corners + random.uniform(0, 2 * np.pi)
    distances = radius * random.uniform(0.75, 1, corners)
    places = _CANVAS / 2 + distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    polygon: NDArray[np.int32] = np.rint(places).astype(np.int32)
    return polygon


def _noise(digits: Examples, random: np.random.Generator) -> Image:
    """Keeps the brightest pixels of noise, from fine to coarse."""
    side = int(random.integers(12, 40))
    noise: MatLike = random.normal(size=(side, side))
    if random.random() < 0.75:
        noise = cv2.GaussianBlur(noise, (0, 0), random.uniform(0.4, 2.5))
    return frame((noise > np.quantile(noise, random.uniform(0.5, 0.97))).astype(float))


def _texture(digits: Examples, random: np.random.Generator) -> Image:
    """Draws grey patches, edges and gradients, as a piece of a photo shows them."""
    side, canvas = 28, np.zeros((28, 28))
    for _ in range(int(random.integers(1, 5))):
        angle, rows_columns = random.uniform(0, 2 * np.pi), np.indices((side, side)) - random.uniform(4, 24, (2, 1, 1))
        ramp = np.cos(angle) * rows_columns[0] + np.sin(angle) * rows_columns[1]
        canvas += random.normal() * np.clip(ramp / random.uniform(0.5, 15), -1, 1)
    blotches = cv2.resize(
        random.normal(size=(int(random.integers(3, 15)),) * 2), (side, side), interpolation=cv2.INTER_CUBIC
    )
    canvas += random.uniform(0, 1.5) * blotches
    canvas -= np.quantile(canvas, random.uniform(0, 0.7))
    return frame(np.clip(canvas / max(canvas.max(), 1e-6), 0, 1))


def _window(digits: Examples, random: np.random.Generator) -> Image:
    """Looks at a row of digits through a window that is smaller than a digit."""
    row = np.concatenate([_pick(digits, random)[:, 4:24] for _ in range(3)], axis=1)
    side = int(random.integers(8, 15))
    top, left = random.integers(3, 25 - side + 1), random.integers(2, 58 - side)
    return frame(row[top : top + side, left : left + side] / 255)


def _mirrored(digits: Examples, random: np.random.Generator) -> Image:
    chosen = _pick_of((3, 4, 6, 7, 9), digits, random)
    return np.ascontiguousarray(chosen[:, ::-1])


def _turned(digits: Examples, random: np.random.Generator) -> Image:
    """Turns a digit by a right angle. A 0 stays a 0, and a 1 becomes a dash."""
    return frame(np.rot90(_pick_of((2, 3, 4, 5, 6, 7, 8, 9), digits, random), random.choice([1, 3])) / 255)


def _crossed_out(digits: Examples, random: np.random.Generator) -> Image:
    """Crosses a digit out: an X, several strokes, or a zigzag over it."""
    large = cv2.resize(_pick(digits, random), (_CANVAS, _CANVAS), interpolation=cv2.INTER_LINEAR)
    low, high = 10 + random.integers(-6, 7, 2), _CANVAS - 10 + random.integers(-6, 7, 2)
    match int(random.integers(3)):
        case 0:
            strokes = [np.array([low, high]), np.array([(low[0], high[1]), (high[0], low[1])])]
        case 1:  # side by side, in any direction
            angle = random.uniform(0, np.pi)
            along, aside = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
            gaps = np.linspace(-1, 1, int(random.integers(2, 5))) * random.uniform(9, 15) + random.normal(0, 2)
            reach = random.uniform(20, 30)
            strokes = [_CANVAS / 2 + gap * aside + np.outer([-reach, reach], along) for gap in gaps]
        case _:
            turns = int(random.integers(4, 9))
            across = np.linspace(low[0], high[0], turns)
            strokes = [
                np.stack([across, np.where(np.arange(turns) % 2, low[1], high[1]) + random.normal(0, 4, turns)], axis=1)
            ]
    return _pen(strokes, random, large)


def _pick_of(labels: tuple[int, ...], digits: Examples, random: np.random.Generator) -> Image:
    while True:
        index = random.integers(len(digits))
        if digits.labels[index] in labels:
            image: Image = digits.images[index]
            return image


def _pen(strokes: list[NDArray[np.float64]], random: np.random.Generator, canvas: MatLike | None = None) -> Image:
    """Draws strokes with a random pen, over `canvas` if there is one, and frames the result."""
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8) if canvas is None else canvas
    points = [np.round(stroke * 16).astype(np.int32) for stroke in strokes]
    cv2.polylines(canvas, points, False, 255, int(random.integers(2, 8)), cv2.LINE_AA, 4)
    return frame(canvas / 255)


KINDS: Mapping[str, tuple[Draw, float]] = {  # by name: how to draw one, and its share
    "letter": (lambda _, random: letter(random), 18),
    "handwritten letter": (lambda _, random: handwritten(random), 14),
    "word": (lambda _, random: word(random), 4),
    "half": (_half, 20),
    "several digits": (_several, 24),
    "scribble": (_scribble, 12),
    "geometry": (_geometry, 12),
    "noise": (_noise, 4),
    "texture": (_texture, 4),
    "window": (_window, 3),
    "mirrored": (_mirrored, 5),
    "turned": (_turned, 4),
    "crossed out": (_crossed_out, 9),
}
