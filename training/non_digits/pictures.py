"""Makes what is no writing at all: noise, pieces of photos, barcodes and pieces of QR codes.

Each function takes a random generator and returns the ink of one picture.
"""

from functools import lru_cache

import numpy as np
from scipy import ndimage

from training.non_digits.pen import slant


def noise(random: np.random.Generator) -> np.ndarray:
    """Draws white, coloured, or black and white noise, or specks, on all of a box whose sides differ by up to half."""
    shape = tuple(random.integers(14, 29, 2))
    form = random.integers(4)
    grey = random.random(shape)
    if form == 1:
        grey = ndimage.gaussian_filter(random.normal(size=shape), random.uniform(0.6, 1.2))
        grey = np.clip(0.5 + grey / (4 * grey.std()), 0, 1)
    elif form == 2:
        grey = (ndimage.gaussian_filter(random.normal(size=shape), random.uniform(0.4, 1)) > 0).astype(float)
    elif form == 3:
        grey = np.where(grey < random.uniform(0.03, 0.2), random.random(shape), 0)
    return grey


def photo_piece(random: np.random.Generator) -> np.ndarray:
    """Cuts a piece of a photo, stretches its contrast and, in half of the images, takes the lighter part as paper.

    The photos are scikit-learn's (CC BY) and Matplotlib's sample pictures (public domain).
    """
    photos = _photos()
    while True:
        photo = photos[random.integers(len(photos))]
        height, width = (int(random.integers(24, 120)) for _ in range(2))
        height, width = min(height, 2 * width), min(width, 2 * height)
        top, left = (int(random.integers(length - size)) for length, size in zip(photo.shape, (height, width), strict=True))
        piece = photo[top : top + height, left : left + width]
        dark, light = np.percentile(piece, [2, 98])
        if light - dark > 30:
            break
    ink = np.clip((light - piece) / (light - dark), 0, 1)
    if random.random() < 0.3:
        ink = 1 - ink
    return np.where(ink < 0.45, 0, ink) if random.random() < 0.5 else ink


def barcode(random: np.random.Generator) -> np.ndarray:
    """Draws six to sixteen bars, upright or lying, as high as wide or longer."""
    widths = random.integers(1, 4, 2 * random.integers(6, 17) - 1)
    row = np.repeat(np.arange(len(widths)) % 2 == 0, widths).astype(float)
    code = np.repeat(row[None], int(len(row) * random.uniform(0.5, 1.2)), axis=0)
    return slant((code if random.random() < 0.7 else code.T).repeat(3, axis=0).repeat(3, axis=1), random, 8, 0, 0)


def qr_piece(random: np.random.Generator) -> np.ndarray:
    """Draws a piece of a QR code: nine to 17 random modules a side, in half of the images with a finder pattern."""
    size = int(random.integers(9, 18))
    code = (random.random((size, size)) < 0.5).astype(float)
    if random.random() < 0.5:
        finder = np.pad(np.pad(np.ones((3, 3)), 1), 1, constant_values=1)
        code[:8, :8] = 0
        code[:7, :7] = finder
        code = np.rot90(code, int(random.integers(4)))
    return slant(code.repeat(6, axis=0).repeat(6, axis=1), random, 6, 0, 0)


@lru_cache(1)
def _photos() -> list[np.ndarray]:
    """Returns grey photos, (height, width) float64, 0 dark to 255 light."""
    from matplotlib.cbook import get_sample_data  # only here: these take a second to load
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [image.mean(axis=2) for image in load_sample_images().images]
    with Image.open(str(get_sample_data("grace_hopper.jpg", asfileobj=False))) as portrait:
        photos.append(np.asarray(portrait.convert("L"), float))
    return photos
