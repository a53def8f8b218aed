"""Damage by position and shape: shifts, turns, sizes and warps."""

import numpy as np
from scipy import ndimage

from training.damage.kind import Damage

_CHUNK = 1000  # images; bounds the memory for coordinates


def shift(pixels: int) -> Damage:
    """Moves each image up, down, left or right; ink that leaves the image is lost."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        direction = random.integers(4, size=len(images))
        moved = np.empty_like(images)
        for index, offset in enumerate([(0, pixels, 0), (0, -pixels, 0), (0, 0, pixels), (0, 0, -pixels)]):
            moved[direction == index] = ndimage.shift(images[direction == index], offset, order=0)
        return moved

    return damage


def rotation(degrees: float) -> Damage:
    """Rotates each image about its centre, half of them in each direction."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        left = random.random(len(images)) < 0.5
        turned = np.empty_like(images)
        for chosen, angle in ((left, degrees), (~left, -degrees)):
            cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            turned[chosen] = _mapped(images[chosen], np.array([[cosine, sine], [-sine, cosine]]))
        return turned

    return damage


def scale(factor: float) -> Damage:
    """Scales images about their centre."""
    return lambda images, _: _mapped(images, np.eye(2) / factor)


def warp(pixels: float) -> Damage:
    """Bends, slants and stretches each image.

    Args:
        pixels: standard deviation of the displacement at the knots of a cubic spline, which are seven pixels apart.
    """

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        spline = ndimage.zoom(np.eye(5), (28 / 5, 1), order=3, mode="nearest", grid_mode=True)  # (28, 5) weights
        rows, columns = np.indices((28, 28)) - 13.5
        warped = np.empty_like(images)
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            knots = random.normal(0, pixels, (2, len(chunk), 5, 5))
            lean = random.uniform(-0.35, 0.35, (len(chunk), 1, 1))
            size = np.exp(random.uniform(-0.15, 0.15, (2, len(chunk), 1, 1)))
            down, right = spline @ knots @ spline.T
            places = (rows * size[0] + down + 13.5, columns * size[1] + lean * rows + right + 13.5)
            number = np.broadcast_to(np.arange(len(chunk))[:, None, None], chunk.shape)
            warped[start : start + _CHUNK] = ndimage.map_coordinates(chunk, np.stack([number, *places]), order=1)
        return warped

    return damage


def _mapped(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Resamples `images` by the 2x2 `matrix`, which maps output to input positions about the centre; outside is paper."""
    affine = np.eye(3)
    affine[1:, 1:] = matrix
    centre = np.array([0, 13.5, 13.5])
    mapped: np.ndarray = ndimage.affine_transform(images, affine, centre - affine @ centre, order=1)
    return mapped
