"""Draws digits as strokes of a pen: samples to send, and handwriting for tests and benchmarks.

`make samples` writes the sample files again; a test compares the committed files with the code.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from serving.samples.photograph import photograph

SAMPLES = Path(__file__).parent

PHOTO_DIGIT = 5
"""The digit on `photo.jpg`."""

FIELD = "90210"
"""The postcode that the files `field/1.jpg` to `field/5.jpg` show, from left to right."""

Stroke = list[tuple[float, float]]

_CANVAS = 200  # pixels per unit of a stroke, before the drawing is scaled down
_SEED = 18  # of the handwriting, paper and light on the photos


def _arc(x: float, y: float, across: float, down: float, start: float, end: float) -> Stroke:
    """Returns part of an ellipse, from angle `start` to `end`, degrees clockwise from three o'clock."""
    angles = np.radians(np.linspace(start, end, 24))
    return [(x + across * np.cos(angle), y + down * np.sin(angle)) for angle in angles]


# Pen strokes in a unit square, x to the right and y down.
_STROKES: list[list[Stroke]] = [
    [_arc(0.5, 0.5, 0.3, 0.48, 0, 360)],
    [[(0.55, 0.0), (0.45, 1.0)]],
    [[*_arc(0.48, 0.28, 0.32, 0.28, -165, 35), (0.12, 0.96), (0.9, 0.96)]],
    [[*_arc(0.42, 0.25, 0.32, 0.25, -150, 90), *_arc(0.42, 0.74, 0.38, 0.25, -90, 150)]],
    [[(0.28, 0.0), (0.15, 0.52), (0.88, 0.48)], [(0.72, 0.08), (0.66, 1.0)]],
    [[(0.85, 0.02), (0.3, 0.04), (0.25, 0.42), *_arc(0.44, 0.7, 0.36, 0.29, -125, 150)]],
    [[(0.68, 0.0), (0.4, 0.28), *_arc(0.48, 0.72, 0.28, 0.27, -165, 195)]],
    [[(0.12, 0.06), (0.85, 0.04), (0.42, 1.0)]],
    [_arc(0.5, 0.25, 0.26, 0.24, 90, 450), _arc(0.5, 0.74, 0.31, 0.25, -90, 270)],
    [[*_arc(0.46, 0.28, 0.3, 0.27, 0, -360), (0.74, 0.5), (0.66, 1.0)]],
]


def draw(digit: int, hand: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """Draws one digit, framed as MNIST frames its digits.

    Args:
        digit: 0 to 9.
        hand: varies slant, turn, width and pen, so that no two drawings are alike. None draws the plain strokes.

    Returns:
        (28, 28) uint8, 0 paper, 255 ink.
    """
    warp = np.eye(2)
    pen = 18.0
    if hand is not None:
        slant, turn, width = hand.normal(0, 0.15), hand.normal(0, 0.08), hand.uniform(0.75, 1.1)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        warp = turned @ np.array([[width, -slant], [0, 1]])
        pen = hand.uniform(12, 26)
    canvas = Image.new("L", (2 * _CANVAS, 2 * _CANVAS), 0)
    brush = ImageDraw.Draw(canvas)
    for stroke in _STROKES[digit]:
        points = (np.array(stroke) - 0.5) @ warp.T
        if hand is not None:
            points += hand.normal(0, 0.008, points.shape)
        line = [(x, y) for x, y in points * _CANVAS + _CANVAS]
        brush.line(line, fill=255, width=round(pen), joint="curve")
        for x, y in (line[0], line[-1]):
            brush.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return _frame(canvas)


def sample_photos() -> dict[str, bytes]:
    """Makes the sample photos.

    Returns:
        JPEG files by their path below this folder: `photo.jpg`, then the digits of the field.
    """
    random = np.random.default_rng(_SEED)
    digits = {"photo.jpg": PHOTO_DIGIT}
    digits |= {f"field/{position}.jpg": int(digit) for position, digit in enumerate(FIELD, 1)}
    return {name: photograph(draw(digit, random), random) for name, digit in digits.items()}


def _frame(canvas: Image.Image) -> NDArray[np.uint8]:
    """Fits the ink into 20x20 pixels and moves its centre of mass to the middle of 28x28."""
    ink = canvas.crop(canvas.getbbox())
    scale = 20 / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX)
    grey = np.asarray(ink, np.float64)
    rows, columns = np.indices(grey.shape)
    top = round(13.5 - (rows * grey).sum() / grey.sum())
    left = round(13.5 - (columns * grey).sum() / grey.sum())
    framed = Image.new("L", (28, 28), 0)
    framed.paste(ink, (left, top))
    return np.asarray(framed)


if __name__ == "__main__":
    for digit in range(10):
        Image.fromarray(255 - draw(digit)).save(SAMPLES / f"{digit}.png")  # dark on light, as on paper
    for name, photo in sample_photos().items():
        (SAMPLES / name).parent.mkdir(exist_ok=True)
        (SAMPLES / name).write_bytes(photo)
