"""Draws glyphs of fonts and pen strokes, and distorts what is drawn, before `frame` makes it an image of 28x28 pixels.

Ink is float64, (height, width), 0 paper to 1 ink, about a hundred pixels high.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIDE = 96  # pixels; side of a square that strokes are drawn in
MARGIN = 16  # pixels of paper around it
GLYPH = 80  # pixels; size of the fonts


def glyphs(text: str, font: str, bold: int = 0) -> np.ndarray:
    """Draws text.

    Args:
        text: one or several characters.
        font: a font that Matplotlib ships, by file name without its ending. Training uses none of these.
        bold: pixels by which all strokes grow on either side.
    """
    face = _face(font)
    left, top, right, bottom = face.getbbox(text, stroke_width=bold)
    picture = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), text, fill=255, font=face, stroke_width=bold)
    return np.asarray(picture) / 255


def strokes(lines: Sequence[np.ndarray], width: float) -> np.ndarray:
    """Draws lines with a round pen.

    Args:
        lines: points of each line, (N, 2), right and down; 0 to 1 spans the square. A single point is a dot.
        width: of the pen, as a share of the square's side.
    """
    picture = Image.new("L", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN))
    draw = ImageDraw.Draw(picture)
    thick = width * SIDE
    for line in lines:
        points = [(float(x), float(y)) for x, y in MARGIN + SIDE * line]
        if len(points) > 1:
            draw.line(points, fill=255, width=round(thick), joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return np.asarray(picture) / 255


def curve(knots: np.ndarray, points: int = 24) -> np.ndarray:
    """Returns points, (points, 2), of the Catmull-Rom spline through `knots`, (N, 2)."""
    ends = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    place = np.linspace(0, len(knots) - 1, points)
    index = np.minimum(place.astype(int), len(knots) - 2)
    t = (place - index)[:, None]
    before, start, end, after = (ends[index + offset] for offset in range(4))
    line: np.ndarray = start + t / 2 * (
        (end - before) + t * ((2 * before - 5 * start + 4 * end - after) + t * (3 * (start - end) + after - before))
    )
    return line


def arc(centre: tuple[float, float], radii: tuple[float, float], start: float, end: float, points: int = 40) -> np.ndarray:
    """Returns points, (points, 2), of an ellipse's arc from angle `start` to `end`, in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, points))
    return np.stack([centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)], axis=1)


def slant(ink: np.ndarray, random: np.random.Generator, turn: float, shear: float, stretch: float) -> np.ndarray:
    """Turns, shears and stretches ink.

    Args:
        ink: (height, width).
        random: draws the amounts.
        turn: largest rotation in either direction, degrees.
        shear: largest shift to either side, per unit of height.
        stretch: largest change of the width, as a share of the width.
    """
    angle, lean = np.radians(random.uniform(-turn, turn)), random.uniform(-shear, shear)
    wide = np.exp(random.uniform(-stretch, stretch))
    forward = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[wide, lean], [0, 1]]
    height, width = ink.shape
    corners = np.abs(forward) @ [width, height]
    size = (int(corners[0]) + 2, int(corners[1]) + 2)
    back = np.linalg.inv(forward)
    offset = np.array([width, height]) / 2 - back @ np.array(size) / 2
    picture = Image.fromarray(np.rint(255 * ink).astype(np.uint8))
    coefficients = (*back[0], offset[0], *back[1], offset[1])
    return np.asarray(picture.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)) / 255


def bend(ink: np.ndarray, random: np.random.Generator, amount: float, waves: int = 4) -> np.ndarray:
    """Displaces ink smoothly, as a hand that does not write like a font.

    Args:
        ink: (height, width).
        random: draws the displacements.
        amount: their standard deviation at the knots of the grid, as a share of the longer side.
        waves: knots of the grid per side.
    """
    margin = int(0.1 * max(ink.shape))
    ink = np.pad(ink, margin)
    height, width = ink.shape
    knots = random.normal(0, amount * max(ink.shape), (2, waves, waves))
    moved = np.indices(ink.shape) + _spline(waves, height) @ knots @ _spline(waves, width).T
    bent: np.ndarray = ndimage.map_coordinates(ink, moved, order=1)
    return bent


@lru_cache(64)
def _face(font: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"), GLYPH)


@lru_cache(512)
def _spline(knots: int, length: int) -> np.ndarray:
    """Returns the weights, (length, knots), of a cubic spline through evenly spaced knots."""
    weights: np.ndarray = ndimage.zoom(np.eye(knots), (length / knots, 1), order=3, mode="nearest", grid_mode=True)
    return weights
