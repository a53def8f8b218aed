"""Random distortions of training images. They give new handwriting in every epoch and are not part of an exported model.

Each layer takes images (N, 28, 28, 1) float32, 0 paper to 255 ink, and draws new parameters for every image. Outside of
training it returns its input unchanged. Erasing and inversion are Keras' own layers (`recipes.py`).
"""

import math
from typing import Any

import keras
import numpy as np
from keras import ops


class RandomWarp(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Rotates, shears, scales, shifts and bends each image in a single resampling.

    Keras' RandomRotation, RandomShear, RandomZoom, RandomTranslation and RandomElasticTransform resample one after another.
    Five bilinear passes blur a stroke that is three pixels wide; one combined map does not.

    Args:
        rotation: largest rotation in either direction, degrees.
        shear: largest slant in either direction, as horizontal shift per unit of height.
        zoom: largest change of size in either direction, as a share of the size; drawn separately for the two axes.
        shift: largest shift in either direction, pixels; drawn separately for the two axes.
        bend: standard deviation of the displacements at the knots of a cubic B-spline, pixels. 0 leaves lines straight.
            Simard et al. 2003 smoothed a displacement of every pixel instead.
        seed: makes the draws repeatable.
        knots: knots per side; with six, a bend is about as long as a stroke.
    """

    def __init__(self, rotation: float, shear: float, zoom: float, shift: float, bend: float, seed: int, knots: int = 6):
        super().__init__()
        self.rotation = rotation
        self.shear = shear
        self.zoom = zoom
        self.shift = shift
        self.bend = bend
        self.seed = seed
        self.knots = knots
        self.seed_generator = keras.random.SeedGenerator(seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, for Keras."""
        return {
            **super().get_config(),
            "rotation": self.rotation,
            "shear": self.shear,
            "zoom": self.zoom,
            "shift": self.shift,
            "bend": self.bend,
            "seed": self.seed,
            "knots": self.knots,
        }

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Distorts `images` during training."""
        if not training:
            return images
        count, size = ops.shape(images)[0], images.shape[1]

        def draw(limit: float) -> keras.KerasTensor:
            return keras.random.uniform((count,), -limit, limit, seed=self.seed_generator)

        turn, slant = draw(math.radians(self.rotation)), draw(self.shear)
        zoom_x, zoom_y = 1.0 + draw(self.zoom), 1.0 + draw(self.zoom)
        # Output pixel (x, y), relative to the centre, samples the input at M (x, y) with M = rotation . shear . scale.
        matrices = ops.stack(
            [
                *(ops.cos(turn) * zoom_x, (ops.cos(turn) * slant - ops.sin(turn)) * zoom_y),
                *(ops.sin(turn) * zoom_x, (ops.sin(turn) * slant + ops.cos(turn)) * zoom_y),
            ],
            axis=1,
        )
        axis = np.arange(size, dtype=np.float32) - (size - 1) / 2
        grid = np.stack(np.meshgrid(axis, axis)).reshape(2, -1)  # (2, size * size): x, y
        points = ops.reshape(ops.matmul(ops.reshape(matrices, (-1, 2, 2)), grid), (-1, 2, size, size))
        points = points + ops.stack([draw(self.shift), draw(self.shift)], axis=1)[:, :, None, None]
        if self.bend:
            knots = keras.random.normal((count, 2, self.knots, self.knots), stddev=self.bend, seed=self.seed_generator)
            spline = _cubic_spline(self.knots, size)
            points = points + ops.matmul(ops.matmul(spline, knots), spline.T)
        return _sample(images, points + (size - 1) / 2)


class RandomStrokeWidth(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Thickens or thins the strokes of each image.

    Blends an image with its grey dilation or erosion by a plus-shaped neighbourhood of one pixel. Each side of a stroke
    gains or loses at most one pixel.

    Args:
        broader: largest weight of the dilated image, 0 to 1.
        finer: largest weight of the eroded image, 0 to 1; 1 erases strokes of two pixels.
        seed: makes the draws repeatable.
    """

    def __init__(self, broader: float, finer: float, seed: int):
        super().__init__()
        self.broader = broader
        self.finer = finer
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, for Keras."""
        return {**super().get_config(), "broader": self.broader, "finer": self.finer, "seed": self.seed}

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Changes the stroke width during training."""
        if not training:
            return images
        weight = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), -self.finer, self.broader, seed=self.seed_generator)
        change = ops.where(weight > 0, _dilate(images) - images, images + _dilate(-images))
        return images + weight * change


class _RandomDamage(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Damages a share of the images, each by its own random amount.

    Args:
        factor: share of the images that are damaged.
        limit: largest amount; amounts are uniform from 0 to this limit.
        seed: makes the draws repeatable.
    """

    def __init__(self, factor: float, limit: float, seed: int):
        super().__init__()
        self.factor = factor
        self.limit = limit
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, for Keras."""
        return {**super().get_config(), "factor": self.factor, "limit": self.limit, "seed": self.seed}

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Damages some of `images` during training."""
        if not training:
            return images
        each = (ops.shape(images)[0], 1, 1, 1)
        chosen = keras.random.uniform(each, seed=self.seed_generator) < self.factor
        amount = keras.random.uniform(each, 0, self.limit, seed=self.seed_generator)
        return ops.where(chosen, self.damage(images, amount), images)

    def damage(self, images: keras.KerasTensor, amount: keras.KerasTensor) -> keras.KerasTensor:
        """Returns `images`, each damaged by its `amount`, (N, 1, 1, 1)."""
        raise NotImplementedError


class RandomBlur(_RandomDamage):
    """Gaussian blur; the amount is its standard deviation, pixels.

    Keras' RandomGaussianBlur is limited to one pixel and draws one deviation per batch.
    """

    def damage(self, images: keras.KerasTensor, amount: keras.KerasTensor) -> keras.KerasTensor:
        """Multiplies each image from both sides by a matrix of Gaussian kernels; outside the image is paper."""
        size = images.shape[1]
        distance = np.arange(-3 * size, 3 * size + 1, dtype=np.float32)
        deviation = ops.maximum(amount[..., 0], 0.1)  # smaller values change no pixel and would divide by 0
        total = ops.sum(ops.exp(-((distance / deviation) ** 2) / 2), axis=-1, keepdims=True)
        offsets = np.subtract.outer(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
        kernels = ops.exp(-((offsets / deviation) ** 2) / 2) / total
        return ops.matmul(ops.matmul(kernels, images[..., 0]), kernels)[..., None]


class RandomFading(_RandomDamage):
    """Fainter ink; the amount is the share of the grey level that is lost."""

    def damage(self, images: keras.KerasTensor, amount: keras.KerasTensor) -> keras.KerasTensor:
        """Scales the grey levels down."""
        return images * (1.0 - amount)


class RandomNoise(_RandomDamage):
    """Gaussian noise; the amount is its standard deviation, grey levels."""

    def damage(self, images: keras.KerasTensor, amount: keras.KerasTensor) -> keras.KerasTensor:
        """Adds independent noise to each pixel."""
        return ops.clip(images + amount * keras.random.normal(ops.shape(images), seed=self.seed_generator), 0.0, 255.0)


def _cubic_spline(knots: int, size: int) -> np.ndarray:
    """Returns the weights, (size, knots) float32, of a uniform cubic B-spline's knots at each pixel of an axis."""
    distance = np.abs(np.linspace(0, knots - 1, size)[:, None] - np.arange(knots))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _sample(images: keras.KerasTensor, points: keras.KerasTensor) -> keras.KerasTensor:
    """Samples `images` bilinearly at `points`, (N, 2, height, width): x and y in pixels. Outside the image is paper."""
    count, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]
    padded = ops.reshape(ops.pad(images[..., 0], ((0, 0), (1, 1), (1, 1))), (-1,))
    row = width + 2
    x = ops.clip(points[:, 0] + 1, 0.0, width + 0.999)
    y = ops.clip(points[:, 1] + 1, 0.0, height + 0.999)
    left, top = ops.floor(x), ops.floor(y)
    x, y = x - left, y - top
    first = ops.reshape(ops.arange(count) * (row * (height + 2)), (-1, 1, 1))
    corner = first + ops.cast(top, "int32") * row + ops.cast(left, "int32")
    above = ops.take(padded, corner) * (1 - x) + ops.take(padded, corner + 1) * x
    below = ops.take(padded, corner + row) * (1 - x) + ops.take(padded, corner + row + 1) * x
    return (above * (1 - y) + below * y)[..., None]


def _dilate(images: keras.KerasTensor) -> keras.KerasTensor:
    """Replaces each pixel by the maximum over itself and its four neighbours."""
    return ops.maximum(
        ops.max_pool(images, (3, 1), strides=1, padding="same"), ops.max_pool(images, (1, 3), strides=1, padding="same")
    )
