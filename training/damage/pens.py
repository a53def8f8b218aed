"""Damage by the pen: broad, fine, broken and hollow strokes."""

import numpy as np
from scipy import ndimage

from serving.imaging.framing import frame
from training.damage.kind import Damage

_DIRECTIONS = np.radians(np.arange(0, 360, 22.5))


def broader(pixels: int) -> Damage:
    """Broadens strokes by a square pen."""
    return lambda images, _: ndimage.grey_dilation(images, size=(1, pixels + 1, pixels + 1))


def finer(pixels: int) -> Damage:
    """Narrows strokes by a square pen."""
    return lambda images, _: ndimage.grey_erosion(images, size=(1, pixels + 1, pixels + 1))


def thick(radius: float) -> Damage:
    """Broadens strokes by a round pen, then frames again.

    Args:
        radius: of the pen, pixels. MNIST's strokes are 3 pixels wide and its digits 20 high: 1.25 makes a stroke of a
            quarter of the height.
    """

    def damage(images: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return reframed(spread(images, radius)).astype(np.float32)

    return damage


def thin(radius: float) -> Damage:
    """Narrows strokes by a round pen. At least a quarter of the ink stays, so that no stroke vanishes."""
    return lambda images, _: np.maximum(255 - spread(255 - images, radius), images / 4)


def broken(gaps: int) -> Damage:
    """Interrupts strokes by round gaps of two to three pixels."""

    def damage(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        damaged = images.copy()
        rows, columns = np.indices((28, 28))
        inked = np.where(images > 128, 0, -np.inf).reshape(len(images), 784)
        for _ in range(gaps):
            place = (inked + random.random(inked.shape, np.float32)).argmax(axis=1)
            down, right = (place // 28)[:, None, None], (place % 28)[:, None, None]
            radius = random.uniform(1, 1.6, (len(images), 1, 1))
            damaged *= np.clip(np.hypot(rows - down, columns - right) - radius + 0.5, 0, 1)
        return damaged

    return damage


def hollow(radius: float) -> Damage:
    """Keeps the outline of strokes: they grow by `radius` pixels, and the strokes themselves become paper."""
    return lambda images, _: spread(images, radius) - 0.9 * images


def reframed(images: np.ndarray) -> np.ndarray:
    """Frames images as MNIST frames digits, (N, 28, 28) uint8. Grey below a sixteenth of full ink becomes paper."""
    return np.stack([frame(np.where(image < 16, 0, image / 255)) for image in images])


def spread(images: np.ndarray, radius: float) -> np.ndarray:
    """Returns the largest value within `radius` pixels, which may be a fraction: dilation by a disc."""
    spread = images
    for share in (0.5, 1) if radius > 1 else (1,):
        for angle in _DIRECTIONS:
            spread = np.maximum(spread, moved(images, share * radius * np.sin(angle), share * radius * np.cos(angle)))
    return spread


def moved(images: np.ndarray, down: float, right: float) -> np.ndarray:
    """Moves images by fractions of pixels, interpolated bilinearly; the border repeats its outermost pixels."""
    reach = int(np.ceil(max(abs(down), abs(right)))) + 1
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    for axis, distance in ((1, down), (2, right)):
        first = int(np.floor(distance))
        share = np.float32(distance - first)
        size = padded.shape[axis] - 2 * reach
        near, far = (
            np.take(padded, np.arange(reach - first - step, reach - first - step + size), axis=axis) for step in (0, 1)
        )
        padded = (1 - share) * near + share * far
    return padded
