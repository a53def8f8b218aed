"""Connected components of the ink: which of them are the digit, and whether others make that doubtful."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

LEAST_AREA = 3  # pixels; noise makes smaller components
SPECK = 0.13  # a component below this share of the digit's area is a speck
SHORTEST = 0.2  # of the crop's height; no digit in its crop is smaller
FLATTEST = 2.5  # width over height of the largest component of a digit
MOST_COMPONENTS = 25  # larger than specks, in a crop; noise has more, and dashed lines are specks
MOST_PARTS = 5  # of one digit
LARGEST_PART = 0.45  # of the longer side of a digit, at least; dots that a cleared line leaves are further apart
OVERLAP = 0.1  # of the width of the largest component; a part of a digit, such as the bar of a 5, overlaps with it more
LARGE_BESIDE = 0.5  # of the height of the largest component; what is taller and stands beside it is another digit
STRIP = 0.6  # of the crop's height or width; at an edge of the crop, a longer component is printing, not a neighbour

# The side of a box or comb that was not cleared is a line along an edge of the crop.
SIDE_MARGIN = 0.2  # of the crop, from an edge inwards; the line lies within it
SIDE_SLIMNESS = 3  # length over thickness
SHORTEST_SIDE = 0.4  # of the crop's width, or height

# A box, a comb or an underline is wider than the digit. A bar of a comb stands beside the digit.
THICKEST_UNDERLINE = 0.15  # of the crop's height
UNDERLINE_OVERLAP = 2  # rows; the soft edges of an underline and of a digit may share as many
FULLEST_BOX = 0.5  # of the rectangle around the lines of a box; a patch of ink fills more
NARROWEST_BOX = 0.6  # of the crop's width
SHORTEST_IN_BOX = 0.35  # of the box's height; what is shorter is no digit written into the box
BAR_MARGIN = 0.25  # of the crop's width, from an edge inwards; a bar lies within it
WIDEST_BAR = 0.12  # of the crop's width

Mask = NDArray[np.uint8]


class BoundingBox(NamedTuple):
    """The smallest upright rectangle around some pixels of a crop, in the order of OpenCV."""

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

    def touches(self, crop: tuple[int, ...]) -> bool:
        """Tells whether the rectangle reaches an edge of the crop, (height, width)."""
        return self.left <= 0 or self.top <= 0 or self.right >= crop[1] or self.bottom >= crop[0]


class Component(NamedTuple):
    """A connected component of the ink; pixels that meet at a corner are connected.

    Attributes:
        label: its number among the labels of the pixels.
        area: its pixels.
        box: the rectangle around it.
    """

    label: int
    area: int
    box: BoundingBox


class Choice(NamedTuple):
    """The components that are the digit.

    Attributes:
        labels: labels of the components, at least one.
        box: the rectangle around them.
        alone: no other component makes it doubtful that they are one digit.
    """

    labels: list[int]
    box: BoundingBox
    alone: bool


def find_components(core: Mask) -> tuple[NDArray[np.uint16 | np.int32], list[Component]]:
    """Returns the label of every pixel, (height, width), and the components of LEAST_AREA or more, largest first."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(core, ltype=label_type(core))
    components = [
        Component(label, area, BoundingBox(*box))
        for label, (*box, area) in enumerate(stats[1:].tolist(), 1)
        if area >= LEAST_AREA
    ]
    return labels, sorted(components, key=lambda component: -component.area)


def label_type(mask: Mask) -> int:
    """Returns the type of labels for the components of a mask: 16 bits, found in half the time, where every label fits."""
    return cv2.CV_16U if mask.size < 1 << 16 else cv2.CV_32S


def choose(components: list[Component], crop: tuple[int, ...]) -> Choice:
    """Chooses the digit among the components in a crop, (height, width).

    Components that reach the crop's edges belong to neighbours, strips and boxes, if there is a digit that doesn't.
    """
    large = [one for one in components if max(one.box.height, one.box.width) >= SHORTEST * crop[0]]
    others = [one for one in large if not any(_surrounds(one, other.box, crop) for other in large if other is not one)]
    inner = [one for one in others if not one.box.touches(crop) and one.box.height >= SHORTEST * crop[0]]
    main = next(iter(inner or others or components))
    no_noise = (
        len(components) < MOST_COMPONENTS or sum(one.area >= SPECK * main.area for one in components) < MOST_COMPONENTS
    )
    chosen, alone = [main], main.box.width < FLATTEST * main.box.height and no_noise
    for one in components:
        if one is main or one.area < SPECK * main.area or (one in large and one not in others):
            continue
        side = _is_side(one.box, crop)
        if inner and (side or one.box.touches(crop)):
            strip = side or one.box.height > STRIP * crop[0] or one.box.width > STRIP * crop[1]
            alone = alone and (strip or one.area < main.area)
            continue
        aside = max(one.box.left - main.box.right, main.box.left - one.box.right)
        if aside > -OVERLAP * main.box.width and one.box.height > LARGE_BESIDE * main.box.height:
            alone = False
        chosen.append(one)
    box = _enclose([one.box for one in chosen])
    near = max(main.box.width, main.box.height) > LARGEST_PART * max(box.width, box.height)
    return Choice([one.label for one in chosen], box, alone and near and len(chosen) <= MOST_PARTS)


def _enclose(boxes: list[BoundingBox]) -> BoundingBox:
    """Returns the rectangle around rectangles, at least one."""
    left, top = min(box.left for box in boxes), min(box.top for box in boxes)
    right, bottom = max(box.right for box in boxes), max(box.bottom for box in boxes)
    return BoundingBox(left, top, right - left, bottom - top)


def _is_side(box: BoundingBox, crop: tuple[int, ...]) -> bool:
    """Tells whether a component is long and thin, and lies along an edge of the crop."""
    height, width = crop
    level = box.width > SIDE_SLIMNESS * box.height and box.width > SHORTEST_SIDE * width
    upright = box.height > SIDE_SLIMNESS * box.width and box.height > SHORTEST_SIDE * height
    return (level and (box.bottom < SIDE_MARGIN * height or box.top > (1 - SIDE_MARGIN) * height)) or (
        upright and (box.right < SIDE_MARGIN * width or box.left > (1 - SIDE_MARGIN) * width)
    )


def _surrounds(component: Component, other: BoundingBox, crop: tuple[int, ...]) -> bool:
    """Tells whether a component is a box, a comb, an underline or a bar beside another component that may be a digit."""
    if other.height < SHORTEST * crop[0]:
        return False
    box = component.box
    wider = box.left < other.left and box.right > other.right
    apart = box.top >= other.bottom - UNDERLINE_OVERLAP or box.bottom <= other.top + UNDERLINE_OVERLAP
    if wider and apart and box.height < THICKEST_UNDERLINE * crop[0]:
        return True
    hollow = component.area < FULLEST_BOX * box.width * box.height
    beyond = box.bottom > other.bottom or box.top < other.top
    if wider and hollow and beyond and box.width > NARROWEST_BOX * crop[1] and other.height > SHORTEST_IN_BOX * box.height:
        return True
    beside = box.left >= other.right or box.right <= other.left
    outer = box.right < BAR_MARGIN * crop[1] or box.left > (1 - BAR_MARGIN) * crop[1]
    return beside and outer and box.width < WIDEST_BAR * crop[1]
