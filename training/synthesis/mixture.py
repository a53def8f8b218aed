"""The images of one epoch of a mixture, with their targets: digits, digits that are drawn, and rubbish."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from training.dataset import Examples
from training.objective import no_digit_targets, whole_targets
from training.synthesis.damage import damage
from training.synthesis.glyphs import glyphs
from training.synthesis.other_pens import other_pens
from training.synthesis.rubbish import rubbish

Distortions = Callable[[int], list[keras.Layer]]  # for a seed

_CHUNK = 1000  # images that are distorted at once


class Teacher(Protocol):
    """A trained model whose answers become a part of the targets.

    Source: Hinton, Vinyals & Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531.

    Attributes:
        sha256: checksum of the model.
    """

    sha256: str

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Returns the probabilities of the digits, (N, 10), for images, (N, 28, 28)."""


@dataclass(frozen=True)
class Mixture:
    """The images of an epoch.

    Attributes:
        images: number of images that an epoch draws and distorts.
        passes: number of times that an epoch trains on each of them; distorting an image costs more than an update.
        glyphs: share of digits drawn in regional styles.
        other_pens: share of digits as other pens and scanners show them.
        rubbish: share of images that show no whole digit.
        damaged: share of the images that are damaged.
        teacher: weight of the teacher's answer in the target of a digit; the label has the rest.
        doubt: weight of equal probabilities of all digits in the loss of rubbish. It keeps the network from being sure of a
            digit where there is none (Hendrycks, Mazeika & Dietterich 2019, Deep Anomaly Detection with Outlier Exposure,
            arXiv 1812.04606).
        bank: number of glyphs that the epochs choose from; there are half as many of other pens, and twice as much rubbish.
    """

    images: int = 70_000
    passes: int = 3
    glyphs: float = 0.1
    other_pens: float = 0.07
    rubbish: float = 0.22
    damaged: float = 0.3
    teacher: float = 0.7
    doubt: float = 0.05
    bank: int = 60_000

    def updates(self, batch_size: int) -> int:
        """Returns the number of updates per epoch."""
        return self.images * self.passes // batch_size


class Bank:
    """The drawn images, which every epoch distorts anew."""

    def __init__(self, mixture: Mixture, digits: Examples, seed: int):
        """Draws them, which takes a minute for each 150,000 images."""
        random = np.random.default_rng([seed, 1])
        self.digits = digits
        self.glyphs = glyphs(mixture.bank, random)
        self.other_pens = other_pens(digits, mixture.bank // 2, random)
        self.rubbish = rubbish(digits, 2 * mixture.bank, random)


def mix(
    mixture: Mixture, bank: Bank, distortions: Distortions | None, teacher: Teacher | None, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draws, distorts and damages the images of one epoch.

    The teacher reads the images before they are damaged. Drawn digits have their label alone as a target: the teacher does
    not know their styles.

    Args:
        mixture: numbers and shares.
        bank: images to draw from.
        distortions: builds the layers that vary the handwriting.
        teacher: answers for the digits of the data set; None uses the labels alone.
        random: makes every choice.

    Returns:
        Images, (n, 28, 28) uint8, in random order, and targets, (n, 11) float32: the weight of each digit, which is its
        probability where there is one, and 1 for a whole digit, else 0.
    """
    glyph_count, pen_count, rubbish_count = (
        round(share * mixture.images) for share in (mixture.glyphs, mixture.other_pens, mixture.rubbish)
    )
    digits = mixture.images - glyph_count - pen_count - rubbish_count
    chosen = np.concatenate([random.permutation(len(bank.digits)) for _ in range(-(-digits // len(bank.digits)))])[:digits]
    drawn = [
        examples[random.integers(len(examples), size=size)]
        for examples, size in ((bank.glyphs, glyph_count), (bank.other_pens, pen_count))
    ]
    other = bank.rubbish[random.integers(len(bank.rubbish), size=rubbish_count)]
    images = np.concatenate([bank.digits.images[chosen], *(part.images for part in drawn), other])
    labels = np.concatenate([bank.digits.labels[chosen], *(part.labels for part in drawn)])
    targets = np.concatenate([whole_targets(labels), no_digit_targets(len(other), mixture.doubt)])
    if distortions:
        images = _distort(images, distortions(int(random.integers(2**31))))
    if teacher and mixture.teacher:
        taught = targets[:digits, :10]
        taught += mixture.teacher * (teacher(images[:digits]) - taught)
    images = damage(images, mixture.damaged, random)
    order = random.permutation(len(images))
    return images[order], targets[order]


def _distort(images: NDArray[np.uint8], layers: Sequence[keras.Layer]) -> NDArray[np.uint8]:
    distorted = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        values = images[start : start + _CHUNK, ..., None].astype(np.float32)
        for layer in layers:
            values = layer(values, training=True)
        values = keras.ops.convert_to_numpy(values)[..., 0]
        distorted[start : start + _CHUNK] = np.clip(np.rint(values), 0, 255)
    return distorted
