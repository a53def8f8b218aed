"""Recipes: data split, distortions, network, optimiser and schedule, by name, with where they come from."""

from collections.abc import Callable
from dataclasses import dataclass

import keras

from training import architectures
from training.augmentation import RandomAffine


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run makes, but for the data and the seed.

    Attributes:
        name: what the command line and the exported model call it.
        source: where the recipe comes from.
        network: builds the untrained network.
        optimiser: builds the optimiser, given the number of updates the run will make.
        batch_size: images per update.
        epochs: passes over the training images.
        validation_images: how many are held out of training, at random, to watch the run and to fit the temperature.
        augmentation: builds the layer that distorts training images, given a seed; None trains on them as they are.
    """

    name: str
    source: str
    network: Callable[[], keras.Sequential]
    optimiser: Callable[[int], keras.Optimizer]
    batch_size: int
    epochs: int
    validation_images: int = 0
    augmentation: Callable[[int], keras.Layer] | None = None


def _adamw_cosine(updates: int) -> keras.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with cosine decay after a warm-up."""
    warmup = updates // 20
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=1e-4, decay_steps=updates - warmup, warmup_target=2e-3, warmup_steps=warmup
    )
    return keras.optimizers.AdamW(rate, weight_decay=0.01)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="convnet",
            source="seed notebook 002",
            network=architectures.convnet,
            optimiser=lambda updates: keras.optimizers.RMSprop(),
            batch_size=64,
            epochs=5,
        ),
        Recipe(
            name="convnet-affine",
            source="ours: the convnet with batch normalisation, distorted images and AdamW",
            network=architectures.convnet_bn,
            optimiser=_adamw_cosine,
            batch_size=128,
            epochs=20,
            validation_images=10_000,
            augmentation=lambda seed: RandomAffine(rotation=12, shear=0.2, zoom=0.12, shift=2, seed=seed),
        ),
    )
}
