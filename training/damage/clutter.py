"""Damage by what lies over the digit or beside it: lines, specks, blotches, covers and neighbours."""

import numpy as np

from training.damage.kind import Damage

ROWS, COLUMNS = np.indices((28, 28)) - 13.5


def occlusion(pixels: int) -> Damage:
    """Covers each image with a square of paper at a random position."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        corner = random.integers(28 - pixels + 1, size=(2, len(images), 1))
        rows, columns = (abs(np.arange(28) - first - (pixels - 1) / 2) < pixels / 2 for first in corner)
        return np.where(rows[:, :, None] & columns[:, None, :], 0, images)

    return damage


def stripes(grey: float) -> Damage:
    """Draws parallel lines over the whole image, a pixel wide and five to eight pixels apart, in any direction.

    Args:
        grey: of the lines, 0 paper to 255 ink.
    """

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        _, across = _turned(len(images), np.pi, random)
        period = random.uniform(5, 8, (len(images), 1, 1))
        distance = abs((across + random.uniform(0, 8, (len(images), 1, 1))) % period - period / 2)
        return _drawn(images, grey * np.clip(1 - distance, 0, 1))

    return damage


def zigzag(grey: float) -> Damage:
    """Draws a zigzag line across the image, within 30 degrees of lying.

    Args:
        grey: of the line, 0 paper to 255 ink.
    """

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        along, across = _turned(len(images), np.pi / 6, random)
        period = random.uniform(6, 11, (len(images), 1, 1))
        height = random.uniform(1.5, 3.5, (len(images), 1, 1))
        phase = (along / period + random.random((len(images), 1, 1))) % 1
        line = height * (4 * abs(phase - 0.5) - 1) + random.uniform(-5, 5, (len(images), 1, 1))
        steep = np.hypot(1, 4 * height / period)
        return _drawn(images, grey * np.clip(1.1 - abs(across - line) / steep, 0, 1))

    return damage


def dashes(lines: int) -> Damage:
    """Draws dashed lines through the middle part of the image, in any direction."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        damaged = images
        for _ in range(lines):
            along, across = _turned(len(images), np.pi, random)
            period = random.uniform(4, 7, (len(images), 1, 1))
            dash = (along / period + random.random((len(images), 1, 1))) % 1 < 0.6
            distance = abs(across + random.uniform(-7, 7, (len(images), 1, 1)))
            damaged = _drawn(damaged, dash * 255 * np.clip(1.2 - distance, 0, 1))
        return damaged

    return damage


def blotches(number: int) -> Damage:
    """Drops round blotches of ink with soft edges on the image, three to five pixels wide."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        damaged = images
        for _ in range(number):
            down, right = random.uniform(-11, 11, (2, len(images), 1, 1))
            radius = random.uniform(1.5, 2.5, (len(images), 1, 1))
            distance = np.hypot(ROWS - down, COLUMNS - right)
            damaged = _drawn(damaged, 255 * np.clip(radius - distance + 0.5, 0, 1))
        return damaged

    return damage


def specks(share: float) -> Damage:
    """Sets this share of the pixels to grey levels from 100 to 255."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        hit = random.random(images.shape, np.float32) < share
        return np.where(hit, np.maximum(images, random.uniform(100, 255, images.shape)), images)

    return damage


def neighbours(pixels: int) -> Damage:
    """Lets part of the next image's digit look in from the left or the right.

    Args:
        pixels: width of the part that looks in. It starts at the edge of the image, where the digit's margin is.
    """

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        damaged = images.copy()
        other = np.roll(images, 1, axis=0)
        inked: np.ndarray = np.any(other > 64, axis=1)  # (N, 28) columns
        right = random.random(len(images)) < 0.5
        first, last = inked.argmax(axis=1), 27 - inked[:, ::-1].argmax(axis=1)
        number = np.arange(len(images))[:, None]
        for chosen, place, source in (
            (right, np.arange(28 - pixels, 28), first[:, None] + np.arange(pixels)),
            (~right, np.arange(pixels), last[:, None] - np.arange(pixels)[::-1]),
        ):
            piece = other[number, :, np.clip(source, 0, 27)]  # (N, pixels, 28)
            part = damaged[np.ix_(chosen, np.arange(28), place)]
            damaged[np.ix_(chosen, np.arange(28), place)] = np.maximum(part, piece[chosen].transpose(0, 2, 1))
        return damaged

    return damage


def _drawn(images: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Adds ink, which does not darken what is darker."""
    darker: np.ndarray = np.maximum(images, ink)
    return darker


def _turned(count: int, limit: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates, (count, 28, 28) each, along and across lines turned by up to `limit` radians either way."""
    angle = random.uniform(-limit, limit, (count, 1, 1))
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * COLUMNS + sine * ROWS, cosine * ROWS - sine * COLUMNS
