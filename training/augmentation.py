"""Random distortions of training images: new handwriting at every epoch, and no part of an exported model."""

import math

import keras
from keras import ops


class RandomAffine(keras.layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Rotates, shears, scales and shifts each image by its own random amounts, resampling it once.

    Keras' RandomRotation, RandomShear, RandomZoom and RandomTranslation resample one after the other, and four bilinear
    passes blur a stroke that is three pixels wide; one combined matrix does not. Works while training only: at
    inference it hands its input through.

    Args:
        rotation: largest turn either way, degrees.
        shear: largest slant either way, as horizontal shift per unit of height.
        zoom: largest change of size either way, as a share of the size; drawn apart for the two axes.
        shift: largest shift either way, pixels; drawn apart for the two axes.
        seed: makes the draws repeatable.

    Call it on images of shape (N, height, width, channels), float32, 0 for paper: what comes into view is paper.
    """

    def __init__(self, rotation: float, shear: float, zoom: float, shift: float, seed: int):
        super().__init__()
        self.rotation = math.radians(rotation)
        self.shear = shear
        self.zoom = zoom
        self.shift = shift
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        """Distorts `images` while training."""
        if not training:
            return images
        count, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]

        def draw(limit: float) -> keras.KerasTensor:
            return keras.random.uniform((count,), -limit, limit, seed=self.seed_generator)

        turn, slant = draw(self.rotation), draw(self.shear)
        zoom_x, zoom_y = 1.0 + draw(self.zoom), 1.0 + draw(self.zoom)
        # Output pixel (x, y), measured from the centre, is read at input pixel M (x, y): M = rotation . shear . scale.
        a0 = ops.cos(turn) * zoom_x
        a1 = (ops.cos(turn) * slant - ops.sin(turn)) * zoom_y
        b0 = ops.sin(turn) * zoom_x
        b1 = (ops.sin(turn) * slant + ops.cos(turn)) * zoom_y
        x, y = (width - 1) / 2, (height - 1) / 2
        a2 = x - a0 * x - a1 * y + draw(self.shift)
        b2 = y - b0 * x - b1 * y + draw(self.shift)
        none = ops.zeros_like(a0)
        matrices = ops.stack([a0, a1, a2, b0, b1, b2, none, none], axis=1)  # (N, 8), as affine_transform wants them
        return ops.image.affine_transform(images, matrices, interpolation="bilinear", fill_mode="constant", fill_value=0.0)
