"""Pieces of ink: which of them are the digit, and whether others make that doubtful."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

SPECK = 0.13  # a piece below this share of the digit's area is a speck
SHORTEST = 0.2  # of the crop's height; no digit in its crop is smaller
ZONE = 0.2  # of the crop; a side of a box, or of a comb, lies within it
FLATTEST = 2.5  # width over height of the largest piece of a digit
MOST_PIECES = 25  # larger than specks, in a crop; noise has more, and dashed lines are specks
MOST_PARTS = 5  # of one digit
LARGEST_PART = 0.45  # of the longer side of a digit, at least; dots that a cleared line leaves are further apart

Mask = NDArray[np.uint8]


class Box(NamedTuple):
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """Column after the last."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """Row after the last."""
        return self.top + self.height


class Piece(NamedTuple):
    """One connected piece of ink.

    Attributes:
        label: its number among the labels of the pixels.
        area: its pixels.
        left, top, width, height, right, bottom: its bounding box; right and bottom are the first pixels beyond.
    """

    label: int
    area: int
    left: int
    top: int
    width: int
    height: int
    right: int
    bottom: int

    def touches(self, crop: tuple[int, ...]) -> bool:
        """Tells whether the piece reaches an edge of the crop, (height, width)."""
        return self.left <= 0 or self.top <= 0 or self.right >= crop[1] or self.bottom >= crop[0]


class Choice(NamedTuple):
    """The pieces that are the digit.

    Attributes:
        labels: labels of the pieces, at least one.
        box: the rectangle around them.
        alone: no other piece makes it doubtful that they are one digit.
    """

    labels: list[int]
    box: Box
    alone: bool


def find_pieces(core: Mask) -> tuple[NDArray[np.uint16 | np.int32], list[Piece]]:
    """Returns the label of every pixel, (height, width), and the pieces, largest first."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(core, ltype=label_type(core))
    pieces = [
        Piece(label, area, left, top, width, height, left + width, top + height)
        for label, (left, top, width, height, area) in enumerate(stats[1:].tolist(), 1)
        if area > 2
    ]
    return labels, sorted(pieces, key=lambda piece: -piece.area)


def label_type(mask: Mask) -> int:
    """Returns the type of labels for the pieces of a mask: 16 bits, found in half the time, where every label fits."""
    return cv2.CV_16U if mask.size < 1 << 16 else cv2.CV_32S


def choose(pieces: list[Piece], crop: tuple[int, ...]) -> Choice:
    """Chooses the digit among the pieces of a crop, (height, width).

    Pieces that reach the crop's edges belong to neighbours, strips and boxes, if there is a digit that doesn't.
    """
    large = [piece for piece in pieces if max(piece.height, piece.width) >= SHORTEST * crop[0]]
    others = [piece for piece in large if not any(_surrounds(piece, other, crop) for other in large)]
    inner = [piece for piece in others if not piece.touches(crop) and piece.height >= SHORTEST * crop[0]]
    main = next(iter(inner or others or pieces))
    no_noise = len(pieces) < MOST_PIECES or sum(piece.area >= SPECK * main.area for piece in pieces) < MOST_PIECES
    chosen, alone = [main], main.width < FLATTEST * main.height and no_noise
    for piece in pieces:
        if piece is main or piece.area < SPECK * main.area:
            continue
        if piece not in others and piece in large:
            continue
        if inner and (piece.touches(crop) or _is_side(piece, crop)):
            strip = piece.height > 0.6 * crop[0] or piece.width > 0.6 * crop[1] or _is_side(piece, crop)
            alone = alone and (strip or piece.area < main.area)
            continue
        aside = max(piece.left - main.right, main.left - piece.right)
        if aside > -0.1 * main.width and piece.height > 0.5 * main.height:
            alone = False
        chosen.append(piece)
    left, top = min(piece.left for piece in chosen), min(piece.top for piece in chosen)
    right, bottom = max(piece.right for piece in chosen), max(piece.bottom for piece in chosen)
    box = Box(left, top, right - left, bottom - top)
    near = max(main.width, main.height) > LARGEST_PART * max(box.width, box.height)
    return Choice([piece.label for piece in chosen], box, alone and near and len(chosen) <= MOST_PARTS)


def _is_side(piece: Piece, crop: tuple[int, ...]) -> bool:
    """Tells whether a piece is long and thin, and lies along an edge of the crop."""
    height, width = crop
    level = piece.width > 3 * piece.height and piece.width > 0.4 * width
    upright = piece.height > 3 * piece.width and piece.height > 0.4 * height
    return (level and (piece.bottom < ZONE * height or piece.top > (1 - ZONE) * height)) or (
        upright and (piece.right < ZONE * width or piece.left > (1 - ZONE) * width)
    )


def _surrounds(piece: Piece, other: Piece, crop: tuple[int, ...]) -> bool:
    """Tells whether a piece is a box, a comb, an underline or a bar beside another piece that may be a digit."""
    if other is piece or other.height < SHORTEST * crop[0]:
        return False
    wider = piece.left < other.left and piece.right > other.right
    flat = piece.height < 0.15 * crop[0] and (piece.top >= other.bottom - 2 or piece.bottom <= other.top + 2)
    hollow = piece.area < 0.5 * piece.width * piece.height
    beyond = piece.bottom > other.bottom or piece.top < other.top
    if wider and (flat or (hollow and beyond and piece.width > 0.6 * crop[1] and other.height > 0.35 * piece.height)):
        return True
    beside = piece.left >= other.right or piece.right <= other.left
    outer = piece.right < 0.25 * crop[1] or piece.left > 0.75 * crop[1]
    return beside and outer and piece.width < 0.12 * crop[1]
