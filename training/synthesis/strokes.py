"""Strokes: curves through control points, the variations of a hand, and the pen that draws them.

Points are (n, 2) float64, x to the right and y down, in a box from (0, 0) to (1, 1).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.imaging.framing import frame

Points = NDArray[np.float64]

_HEIGHT = 44  # pixels of the box that a pen draws into; framing scales it to 20
_CANVAS = 96  # pixels; a slanted, broad glyph has room
_SHIFT = 4  # binary digits after the point in OpenCV's coordinates
_KNOTS = 4  # per side of the grid whose displacements bend a glyph


def curve(points: ArrayLike, closed: bool = False, samples: int = 8) -> Points:
    """Returns a smooth curve through `points`, with `samples` points from one to the next.

    Source: Catmull & Rom 1974, A Class of Local Interpolating Splines.
    """
    p = np.asarray(points, float)
    ends = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    p = np.concatenate([ends[0], p, ends[1]])
    t = np.linspace(0, 1, samples, endpoint=False)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    between = b + t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * b - a - 3 * c + d))) / 2
    return np.concatenate([between.swapaxes(0, 1).reshape(-1, 2), p[-2:-1]])


def line(*points: tuple[float, float]) -> Points:
    """Returns straight lines from point to point, with points between them, so that a hand can bend them."""
    p = np.asarray(points, float)
    t = np.linspace(0, 1, 6, endpoint=False)[:, None, None]
    return np.concatenate([(p[:-1] + t * (p[1:] - p[:-1])).swapaxes(0, 1).reshape(-1, 2), p[-1:]])


def arc(centre: tuple[float, float], radii: tuple[float, float], start: float, turn: float) -> Points:
    """Returns an arc of an ellipse from the angle `start` on through `turn` degrees, counter-clockwise as it is seen."""
    angles = np.radians(start + np.linspace(0, turn, max(int(abs(turn) / 12), 4)))
    return np.stack([centre[0] + radii[0] * np.cos(angles), centre[1] - radii[1] * np.sin(angles)], axis=1)


def join(*parts: ArrayLike) -> Points:
    """Returns one stroke through several parts."""
    return np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in parts])


@dataclass(frozen=True)
class Hand:
    """Range of the variations between writers.

    Attributes:
        aspect: lowest and highest width of a glyph, as a share of its height.
        pen: thinnest and broadest pen, as a share of the height; drawn evenly on a logarithmic scale.
        slant: mean and standard deviation of the slant, as horizontal shift per unit of height.
        turn: standard deviation of the rotation, degrees.
        bend: standard deviation of the displacements that bend a glyph, as a share of its height.
    """

    aspect: tuple[float, float] = (0.45, 0.95)
    pen: tuple[float, float] = (0.055, 0.24)
    slant: tuple[float, float] = (0.12, 0.18)
    turn: float = 6.0
    bend: float = 0.03

    def write(self, strokes: list[Points], random: np.random.Generator) -> NDArray[np.uint8]:
        """Draws `strokes` as one writer would, and frames the result.

        Returns:
            (28, 28) uint8, 0 paper to 255 ink.
        """
        angle, slant = np.radians(random.normal(0, self.turn)), random.normal(*self.slant)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = rotation @ [[1, -slant], [0, 1]] @ np.diag([random.uniform(*self.aspect), 1])
        knots = random.normal(0, self.bend, (_KNOTS, _KNOTS, 2))
        pen = _HEIGHT * np.exp(random.uniform(*np.log(self.pen)))
        drawn = [((stroke - 0.5 + _displace(stroke, knots)) @ matrix.T) * _HEIGHT + _CANVAS / 2 for stroke in strokes]
        return frame(draw(drawn, pen))


def draw(strokes: list[Points], pen: float) -> NDArray[np.float64]:
    """Draws strokes with a round pen.

    Args:
        strokes: points in pixels of the canvas.
        pen: width, pixels.

    Returns:
        (96, 96) float64, 0 paper to 1 ink.
    """
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    fixed = [np.round(stroke * (1 << _SHIFT)).astype(np.int32) for stroke in strokes]
    cv2.polylines(canvas, fixed, False, 255, max(1, round(pen)), cv2.LINE_AA, _SHIFT)
    return canvas / 255


def _displace(points: Points, knots: NDArray[np.float64]) -> Points:
    """Interpolates the displacements at `knots`, (K, K, 2), bilinearly at `points`."""
    place = np.clip(points, 0, 1) * (len(knots) - 1.001)
    first = place.astype(int)
    part = place - first
    x, y = first.T
    across = np.stack([1 - part[:, 0], part[:, 0]])[..., None]
    above = across[0] * knots[y, x] + across[1] * knots[y, x + 1]
    below = across[0] * knots[y + 1, x] + across[1] * knots[y + 1, x + 1]
    return above + part[:, 1:] * (below - above)
