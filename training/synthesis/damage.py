"""Damage: what paper, light, scanners and neighbours do to the image of a digit that a person still reads.

Each function takes images (n, 28, 28) float32, 0 paper to 255 ink, and a random generator, and returns damaged images, whose
values may lie outside of that range. Damage to half the digits or more costs accuracy on undamaged ones.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Damage = Callable[[Images, np.random.Generator], Images]

_SIDE = 28


def damage(images: NDArray[np.uint8], share: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """Damages a share of the images, most of them in one way, some in several.

    Args:
        images: (N, 28, 28) uint8, 0 paper to 255 ink.
        share: share of the images that are damaged, about; 0 to 1.
        random: draws the images and the damage.

    Returns:
        (N, 28, 28) uint8.
    """
    damaged = images.copy()
    total = sum(weight for _, weight in KINDS.values())
    for apply, weight in KINDS.values():
        chosen = np.flatnonzero(random.random(len(images)) < share * weight / total)
        if len(chosen):
            changed = apply(damaged[chosen].astype(np.float32), random)
            damaged[chosen] = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return damaged


def _each(random: np.random.Generator, count: int, low: float, high: float) -> Images:
    """Draws a number for each image, (count, 1, 1)."""
    return random.uniform(low, high, (count, 1, 1)).astype(np.float32)


def _clouds(random: np.random.Generator, count: int, knots: int) -> Images:
    """Returns smooth random fields from 0 to 1, (count, 28, 28)."""
    coarse = random.normal(size=(count, knots, knots)).astype(np.float32)
    fields = np.stack([cv2.resize(field, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC) for field in coarse])
    low, high = fields.min(axis=(1, 2), keepdims=True), fields.max(axis=(1, 2), keepdims=True)
    return (fields - low) / (high - low + np.float32(1e-6))


def _haze(images: Images, random: np.random.Generator) -> Images:
    """Grey paper under slowly changing light, and little contrast."""
    count = len(images)
    light = _clouds(random, count, int(random.integers(3, 9)))
    depth, even = _each(random, count, 0, 3.5), _each(random, count, 0, 1)
    grey = even * _each(random, count, 0, 1) + (1 - even) * light
    return (images + 255 * depth * grey) / (1 + depth)


def _glare(images: Images, random: np.random.Generator) -> Images:
    """A lighter or darker picture whose values run into the end of the range."""
    return images * _each(random, len(images), 0.5, 1.3) + _each(random, len(images), 0, 170)


def _bands(images: Images, random: np.random.Generator) -> Images:
    """Light ink on dark ground in a band, or everywhere but in a band, across or upright."""
    count = len(images)
    axis = np.arange(_SIDE, dtype=np.float32)
    start, end = _each(random, count, 0, 14), _each(random, count, 14, 29)
    place = np.where(random.random((count, 1, 1)) < 0.7, axis[None, None, :], axis[None, :, None])
    inside = (place >= start) & (place < end)
    return np.where(inside ^ (random.random((count, 1, 1)) < 0.5), 255 - images, images)


def _lines(images: Images, random: np.random.Generator) -> Images:
    """A line across the digit: straight, dashed or zigzag; level, rising or steep."""
    count = len(images)
    rows, columns = np.indices((_SIDE, _SIDE), dtype=np.float32)[:, None]
    steep = random.random((count, 1, 1)) < 0.3
    along, across = np.where(steep, rows, columns), np.where(steep, columns, rows)
    slope = _each(random, count, -0.8, 0.8)
    height = np.where(random.random((count, 1, 1)) < 0.4, _each(random, count, 0.7, 3), 0)
    phase = (along + _each(random, count, 0, 10)) / _each(random, count, 3, 10)
    zigzag = height * (4 * np.abs(phase - np.floor(phase) - 0.5) - 1)
    distance = np.abs(across - _each(random, count, 0, _SIDE) - slope * (along - 14) - zigzag) / np.sqrt(1 + slope**2)
    ink = np.clip(1.5 - distance / _each(random, count, 0.5, 1.3), 0, 1)
    stride = along / _each(random, count, 2, 6)
    dashed = (random.random((count, 1, 1)) < 0.4) & (stride - np.floor(stride) > 0.5)
    ends = (along < _each(random, count, -10, 8)) | (along > _each(random, count, 20, 38))
    return np.maximum(images, np.where(dashed | ends, 0, ink) * _each(random, count, 100, 255))


def _blotches(images: Images, random: np.random.Generator) -> Images:
    """Spots of one grey level, or of paper, that cover parts of the digit."""
    count = len(images)
    covered = _clouds(random, count, 14) > _each(random, count, 0.62, 0.85)
    grey = np.where(random.random((count, 1, 1)) < 0.7, _each(random, count, 0, 130), 0)
    return np.where(covered, grey, images)


def _hollow(images: Images, random: np.random.Generator) -> Images:
    """Outlines of the strokes instead of the strokes."""
    outer, inner = _dilate(images) - images, images + _dilate(-images)
    return np.where(random.random((len(images), 1, 1)) < 0.5, outer, inner) * _each(random, len(images), 1, 3)


def _thick(images: Images, random: np.random.Generator) -> Images:
    """A broad pen, or ink that runs: up to two pixels more on each side."""
    once = _dilate(images)
    twice = _dilate(once)
    weight = _each(random, len(images), 0.3, 2)
    return np.where(weight < 1, images + weight * (once - images), once + (weight - 1) * (twice - once))


def _specks(images: Images, random: np.random.Generator) -> Images:
    """Single pixels of ink and of paper."""
    drawn, half = random.random(images.shape, np.float32), _each(random, len(images), 0, 0.12)
    return np.where(drawn < half, 0, np.where(drawn > 1 - half, 255, images)).astype(np.float32)


def _neighbour(images: Images, random: np.random.Generator) -> Images:
    """The edge of another digit on the left or on the right."""
    result = images.copy()
    for index, other in enumerate(random.permutation(len(images))):
        width = int(random.integers(6, 10))  # columns of the frame that the neighbour, which has a margin of four, reaches into
        if random.random() < 0.5:
            np.maximum(result[index, :, :width], images[other, :, -width:], out=result[index, :, :width])
        else:
            np.maximum(result[index, :, -width:], images[other, :, :width], out=result[index, :, -width:])
    return result


def _warped(images: Images, random: np.random.Generator) -> Images:
    """Turned by up to 25 degrees, slanted, stretched, shifted, or half as large."""
    warped = np.empty_like(images)
    for index, image in enumerate(images):
        angle, slant = np.radians(random.uniform(-25, 25)), random.uniform(-0.35, 0.35)
        size = random.uniform(0.55, 1) if random.random() < 0.4 else random.uniform(0.8, 1.25)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = rotation @ [[1, slant], [0, 1]] @ np.diag(size * random.uniform(0.9, 1.1, 2))
        shift = 13.5 + random.uniform(-3, 3, 2) - matrix @ [13.5, 13.5]
        warped[index] = cv2.warpAffine(image, np.column_stack([matrix, shift]), (_SIDE, _SIDE), flags=cv2.INTER_LINEAR)
    return warped


def _coarse(images: Images, random: np.random.Generator) -> Images:
    """Few pixels, or the blocks of a strong JPEG compression."""
    coarse = np.empty_like(images)
    for index, image in enumerate(images):
        if random.random() < 0.5:
            side = int(random.integers(8, 18))
            small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            coarse[index] = cv2.resize(small, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
        else:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(3, 30))]
            _, encoded = cv2.imencode(".jpg", 255 - image.astype(np.uint8), quality)
            coarse[index] = 255 - cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).astype(np.float32)
    return coarse


def _dilate(images: Images) -> Images:
    """Replaces each pixel by the maximum over itself and its four neighbours."""
    dilated = images.copy()
    np.maximum(dilated[:, 1:], images[:, :-1], out=dilated[:, 1:])
    np.maximum(dilated[:, :-1], images[:, 1:], out=dilated[:, :-1])
    np.maximum(dilated[:, :, 1:], images[:, :, :-1], out=dilated[:, :, 1:])
    np.maximum(dilated[:, :, :-1], images[:, :, 1:], out=dilated[:, :, :-1])
    return dilated


KINDS: Mapping[str, tuple[Damage, float]] = {  # by name, with its weight among the damaged images
    "warped": (_warped, 26),
    "haze": (_haze, 13),
    "lines": (_lines, 13),
    "neighbour": (_neighbour, 10),
    "glare": (_glare, 8),
    "thick": (_thick, 8),
    "bands": (_bands, 7),
    "specks": (_specks, 6),
    "blotches": (_blotches, 5),
    "hollow": (_hollow, 5),
    "coarse": (_coarse, 5),
}
