"""Damage by light, camera and compression."""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from training.damage.kind import Damage
from training.damage.pens import moved


def blur(sigma: float) -> Damage:
    """Blurs images as a lens out of focus does."""
    return lambda images, _: ndimage.gaussian_filter(images, (0, sigma, sigma), mode="constant")


def motion_blur(pixels: int) -> Damage:
    """Averages each image along a straight line of `pixels`, in one of twelve directions."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        direction = random.integers(12, size=len(images))
        blurred = np.empty_like(images)
        for index in range(12):
            chosen = images[direction == index]
            angle = np.pi * index / 12
            steps = pixels * ((np.arange(2 * pixels) + 0.5) / (2 * pixels) - 0.5)
            parts = [moved(chosen, step * np.sin(angle), step * np.cos(angle)) for step in steps]
            blurred[direction == index] = np.mean(parts, axis=0)
        return blurred

    return damage


def noise(sigma: float) -> Damage:
    """Adds normal noise to every pixel."""
    return lambda images, random: images + random.normal(0, sigma, images.shape)


def faint(share: float) -> Damage:
    """Reduces the ink to this share of its grey level."""
    return lambda images, _: images * share


def inversion() -> Damage:
    """Exchanges ink and paper."""
    return lambda images, _: 255 - images


def haze(veil: float) -> Damage:
    """Puts an uneven grey veil over images, which takes contrast.

    Args:
        veil: the share of the ink's contrast that is lost; the veil's grey reaches the same share of full ink.
    """

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        field = _smooth(len(images), 3, random)
        return images * (1 - veil) + 255 * veil * field

    return damage


def glare(strength: float) -> Damage:
    """Fades the ink around one bright spot that lies within the middle of the image, four to seven pixels wide.

    Args:
        strength: share of the ink that is lost in the middle of the spot.
    """

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        rows, columns = np.indices((28, 28))
        down, right = random.uniform(6, 22, (2, len(images), 1, 1))
        radius = random.uniform(4, 7, (2, len(images), 1, 1))
        distance = ((rows - down) / radius[0]) ** 2 + ((columns - right) / radius[1]) ** 2
        faded: np.ndarray = images * (1 - strength * np.exp(-0.5 * distance**2))
        return faded

    return damage


def inverted_band(pixels: int) -> Damage:
    """Exchanges ink and paper within a band of `pixels` across the image, upright or lying, at a random place."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        first = random.integers(0, 28 - pixels + 1, (len(images), 1))
        band = abs(np.arange(28) - first - (pixels - 1) / 2) < pixels / 2
        lying = random.random((len(images), 1, 1)) < 0.5
        return np.where(np.where(lying, band[:, :, None], band[:, None, :]), 255 - images, images)

    return damage


def jpeg(quality: int) -> Damage:
    """Compresses each image as a JPEG of this quality, 1 to 95."""

    def compress(image: np.ndarray) -> np.ndarray:
        content = io.BytesIO()
        Image.fromarray(255 - image).save(content, "jpeg", quality=quality)
        return 255 - np.asarray(Image.open(content))

    def damage(images: np.ndarray, _: np.random.Generator) -> np.ndarray:
        grey = np.rint(images).astype(np.uint8)
        return np.stack([compress(image) for image in grey]).astype(np.float32)

    return damage


def low_resolution(pixels: int) -> Damage:
    """Reduces images to `pixels` a side by averaging, then enlarges them bilinearly."""
    edges = np.linspace(0, 28, pixels + 1)
    start = np.arange(28)
    covered = np.clip(np.minimum(edges[1:, None], start + 1) - np.maximum(edges[:-1, None], start), 0, None)
    reduce = (covered * pixels / 28).astype(np.float32)  # (pixels, 28) weights
    places = (start + 0.5) * pixels / 28 - 0.5
    enlarge = np.clip(1 - abs(np.clip(places, 0, pixels - 1)[:, None] - np.arange(pixels)), 0, 1).astype(np.float32)
    both = enlarge @ reduce
    return lambda images, _: both @ images @ both.T


def _smooth(count: int, knots: int, random: np.random.Generator) -> np.ndarray:
    """Draws smooth fields, (count, 28, 28), 0 to 1, by cubic splines through random knots."""
    spline = ndimage.zoom(np.eye(knots), (28 / knots, 1), order=3, mode="nearest", grid_mode=True)
    fields = spline @ random.random((count, knots, knots)) @ spline.T
    clipped: np.ndarray = np.clip(fields, 0, 1)
    return clipped
