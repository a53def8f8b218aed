"""Short training runs: recipes for a few hundred images, and their fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

    from training.batches import Batches
    from training.fit import Fit
    from training.recipes import Recipe


def fit(*arguments: Any, **named: Any) -> "Fit":
    from training.fit import fit

    return fit(*arguments, **named)


def small(name: str = "flagship-small", **changes: Any) -> "Recipe":
    """A recipe for three hundred images, with distortions, dropout, batch normalisation and averaged weights."""
    from training.recipes import RECIPES

    return replace(RECIPES[name], **{"batch_size": 32, "validation_images": 0} | changes)


def tiny(**changes: Any) -> "Recipe":
    """A recipe with every kind of state that `small` has, in a network that is built and trained in a moment."""
    from training.augmentation import RandomNoise

    return small(network=tiny_network, augmentation=lambda seed: [RandomNoise(0.5, 20, seed)], **changes)


def tiny_network() -> "keras.Sequential":
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *(layers.Rescaling(1 / 255), layers.Conv2D(8, 5, strides=3, use_bias=False)),
            *(layers.BatchNormalization(momentum=0.9), layers.ReLU(), layers.Flatten()),
            *(layers.Dropout(0.2), layers.Dense(10)),
        ]
    )


def same(one: "Fit", other: "Fit") -> bool:
    return all(np.allclose(a, b, atol=1e-6) for a, b in zip(one.network.weights, other.network.weights, strict=True))


def interrupted_in_the_second_epoch(begin: Callable[["Batches", int], None]) -> Callable[["Batches", int], None]:
    """Returns a `Batches.begin` that interrupts the run where the second epoch begins, as Ctrl-C does."""

    def begin_or_interrupt(batches: "Batches", epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        begin(batches, epoch)

    return begin_or_interrupt


def epochs_in(checkpoint: Path) -> int:
    with np.load(checkpoint) as saved:
        return len(json.loads(str(saved["about"]))["history"]["loss"])
