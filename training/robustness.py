"""Measures accuracy on images unlike MNIST's: damaged test images, and digits from a second source."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from serving.imaging.framing import frame
from training.dataset import Examples

# Maps images (N, 28, 28) float32, 0 paper to 255 ink, and a random generator to damaged images; the result may exceed the
# range of grey levels.
Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def robustness(predict: Callable[[np.ndarray], np.ndarray], examples: Examples, seed: int) -> list[dict[str, Any]]:
    """Measures the accuracy on `examples` undamaged, in the first row, and under each kind of damage.

    Args:
        predict: returns probabilities, (N, 10), for images, (N, 28, 28) uint8.
        examples: images framed as MNIST frames them.
        seed: of directions, positions and noise. Each row draws independently.

    Returns:
        One row per kind and amount of damage, with `damage`, `amount`, `accuracy` and `images`.
    """
    rows = []
    for number, (damage, amount, apply) in enumerate(_damages()):
        damaged = apply(examples.images.astype(np.float32), np.random.default_rng([seed, number]))
        images = np.clip(np.rint(damaged), 0, 255).astype(np.uint8)
        accuracy = float((predict(images).argmax(axis=1) == examples.labels).mean())
        rows.append({"damage": damage, "amount": amount, "accuracy": accuracy, "images": len(examples)})
    return rows


def second_source() -> Examples:
    """Returns scikit-learn's 1,797 handwritten digits, by 13 writers unknown to MNIST, framed as MNIST frames digits.

    The originals hold the ink share, 0 to 16, of 8x8 cells of a 32x32 bitmap. A cubic spline through the shares, at four
    times the resolution, approximates this bitmap. Values of at least a quarter keep their grey level and the rest becomes
    paper: binarisation would break thin strokes and close small loops.

    Source: E. Alpaydin & C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    doi 10.24432/C50P49, CC BY 4.0; its test part, which sklearn.datasets.load_digits includes.
    """
    from sklearn.datasets import load_digits  # only here: loading scikit-learn takes a second

    digits = load_digits()
    shares = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1)))  # a margin of paper, for strokes at the edge
    spline = ndimage.zoom(np.eye(10), (4, 1), order=3, mode="grid-constant", grid_mode=True)  # (40, 10) weights
    grey = spline @ shares @ spline.T
    ink = np.where(grey < 0.25, 0, np.minimum(grey, 1))
    return Examples(np.stack([frame(image) for image in ink]), digits.target.astype(np.uint8))


def _damages() -> list[tuple[str, str, Damage]]:
    """Lists each damage with its amounts, up to a level at which a person would still recognize most digits."""
    return [
        ("none", "", lambda images, _: images),
        *(("shift", f"{pixels} px", _shift(pixels)) for pixels in (1, 2, 3, 4)),
        *(("rotation", f"{degrees} degrees", _rotation(degrees)) for degrees in (5, 10, 15, 20, 30)),
        *(("scale", f"{factor:.0%}", _scale(factor)) for factor in (0.9, 0.8, 0.7, 1.1, 1.2)),
        ("broader strokes", "1 px", lambda images, _: ndimage.grey_dilation(images, size=(1, 2, 2))),
        ("broader strokes", "2 px", lambda images, _: ndimage.grey_dilation(images, size=(1, 3, 3))),
        ("finer strokes", "1 px", lambda images, _: ndimage.grey_erosion(images, size=(1, 2, 2))),
        *(("blur", f"sigma {sigma} px", _blur(sigma)) for sigma in (0.5, 1, 1.5, 2)),
        *(("noise", f"sigma {sigma} of 255", _noise(sigma)) for sigma in (20, 40, 80)),
        *(("faint ink", f"{share:.0%}", _faint(share)) for share in (0.5, 0.25)),
        ("inversion", "", lambda images, _: 255 - images),
        *(("occlusion", f"{pixels} x {pixels} px", _occlusion(pixels)) for pixels in (4, 6, 8, 10)),
    ]


def _shift(pixels: int) -> Damage:
    """Moves each image up, down, left or right; ink that leaves the image is lost."""

    def shift(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        direction = random.integers(4, size=len(images))
        moved = np.empty_like(images)
        for index, offset in enumerate([(0, pixels, 0), (0, -pixels, 0), (0, 0, pixels), (0, 0, -pixels)]):
            moved[direction == index] = ndimage.shift(images[direction == index], offset, order=0)
        return moved

    return shift


def _rotation(degrees: float) -> Damage:
    """Rotates each image about its centre, half of them in each direction."""

    def rotate(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        left = random.random(len(images)) < 0.5
        turned = np.empty_like(images)
        for chosen, angle in ((left, degrees), (~left, -degrees)):
            cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            turned[chosen] = _warp(images[chosen], np.array([[cosine, sine], [-sine, cosine]]))
        return turned

    return rotate


def _scale(factor: float) -> Damage:
    """Scales images about their centre."""
    return lambda images, _: _warp(images, np.eye(2) / factor)


def _blur(sigma: float) -> Damage:
    return lambda images, _: ndimage.gaussian_filter(images, (0, sigma, sigma), mode="constant")


def _noise(sigma: float) -> Damage:
    return lambda images, random: images + random.normal(0, sigma, images.shape)


def _faint(share: float) -> Damage:
    """Reduces the ink to this share of its grey level."""
    return lambda images, _: images * share


def _occlusion(pixels: int) -> Damage:
    """Covers each image with a square of paper at a random position."""

    def occlude(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        corner = random.integers(28 - pixels + 1, size=(2, len(images), 1))
        rows, columns = (abs(np.arange(28) - first - (pixels - 1) / 2) < pixels / 2 for first in corner)
        return np.where(rows[:, :, None] & columns[:, None, :], 0, images)

    return occlude


def _warp(images: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Resamples `images` by the 2x2 `matrix`, which maps output to input positions about the centre; outside is paper."""
    affine = np.eye(3)
    affine[1:, 1:] = matrix
    centre = np.array([0, 13.5, 13.5])
    warped: np.ndarray = ndimage.affine_transform(images, affine, centre - affine @ centre, order=1)
    return warped
