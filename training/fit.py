"""Trains one recipe's network."""

import sys
import time
from dataclasses import dataclass

import keras
import numpy as np

from training.dataset import Examples
from training.recipes import Recipe


@dataclass(frozen=True)
class Fit:
    """A trained network, and how it came about.

    Attributes:
        network: float32 images (N, 28, 28, 1), 0 paper to 1 ink, to logits (N, 10).
        history: Keras' figures for each epoch, by name: loss, accuracy, and with validation images val_loss, val_accuracy.
        seconds: how long training took.
    """

    network: keras.Sequential
    history: dict[str, list[float]]
    seconds: float


def fit(recipe: Recipe, train: Examples, validation: Examples, seed: int, epochs: int) -> Fit:
    """Trains `recipe`'s network on `train` for `epochs`, watching `validation` where there is any.

    The last epoch's weights are the result: no epoch is picked by its score. On one machine, the same seed gives the same
    network as far as the backend's own arithmetic allows.
    """
    keras.utils.set_random_seed(seed)
    network = recipe.network()
    trainer = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            *([recipe.augmentation(seed)] if recipe.augmentation else []),
            network,
        ]
    )
    updates = epochs * -(-len(train) // recipe.batch_size)
    trainer.compile(
        recipe.optimiser(updates), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    start = time.monotonic()
    history = trainer.fit(
        train.images,
        train.labels,
        batch_size=recipe.batch_size,
        epochs=epochs,
        validation_data=(validation.images, validation.labels) if len(validation) else None,
        validation_batch_size=500,
        verbose=1 if sys.stdout.isatty() else 2,  # a bar that moves, or one line an epoch in a log
    )
    return Fit(network, history.history, time.monotonic() - start)


def logits(network: keras.Sequential, images: np.ndarray) -> np.ndarray:
    """What `network` says of `images`, (N, 28, 28) uint8: (N, 10) float32, one row an image, larger where likelier."""
    answer: np.ndarray = network.predict(images[..., None] / np.float32(255), batch_size=500, verbose=0)
    return answer
