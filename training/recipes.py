"""Named recipes: data split, augmentation, network, optimiser and schedule, with their sources."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
from keras import layers

from training import architectures
from training.augmentation import RandomBlur, RandomFading, RandomNoise, RandomStrokeWidth, RandomWarp
from training.dataset import Dataset, Examples, hold_out
from training.synthesis.mixture import Mixture


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training run, except for the data and the seed.

    Attributes:
        name: name on the command line and in the exported model's metadata.
        source: origin of the recipe.
        network: builds the untrained network.
        optimiser: builds the optimiser for a given number of updates.
        batch_size: images per update.
        epochs: passes over the training images, at most.
        expected: lowest and highest test accuracy that the recipe should reach.
        claimed: test accuracy that the source prints or claims, verbatim; "" if it claims nothing.
        file: name and SHA-256 of the file that defines the recipe; None for the recipes of this module.
        training_images: number of images to train on, the first of those that are not held out; None uses all.
        validation_images: number of images held out of training, to monitor the run, fit the temperature and certify
            thresholds.
        patience: epochs without a lower validation loss after which training stops; None disables early stopping.
        steps: updates per epoch; None uses every batch, including a smaller last one.
        augmentation: builds the layers that distort training images for a given seed; None trains on undistorted images.
        mixture: drawn digits, rubbish, damage and a teacher beside the data set, for a network with eleven outputs; None
            trains a network with ten outputs on the data set alone.
    """

    name: str
    source: str
    network: Callable[[], keras.Model]
    optimiser: Callable[[int], keras.Optimizer]
    batch_size: int
    epochs: int
    expected: tuple[float, float]
    claimed: str = ""
    file: dict[str, str] | None = None
    training_images: int | None = None
    validation_images: int = 0
    patience: int | None = None
    steps: int | None = None
    augmentation: Callable[[int], list[keras.Layer]] | None = None
    mixture: Mixture | None = None

    def split(self, dataset: Dataset, seed: int) -> tuple[Examples, Examples]:
        """Returns the images that a run trains on and the images that it holds out."""
        train, validation = hold_out(dataset, self.validation_images, seed)
        return train[: self.training_images], validation


def _adam(updates: int) -> keras.Optimizer:
    return keras.optimizers.Adam()


def _rmsprop(updates: int) -> keras.Optimizer:
    return keras.optimizers.RMSprop()


def _adadelta(updates: int) -> keras.Optimizer:
    """Returns Adadelta at Keras' default rate of 0.001, a thousandth of the rate in Zeiler 2012, arXiv 1212.5701."""
    return keras.optimizers.Adadelta()


def _one_cycle(peak: float) -> Callable[[int], keras.Optimizer]:
    """Builds AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with warm-up and cosine decay.

    The rate rises to `peak` over the first tenth of the run, then decays along a cosine. The result is an average of the
    weights over about a thousand updates, or the last tenth of a short run (Polyak & Juditsky 1992).
    """

    def optimiser(updates: int) -> keras.Optimizer:
        warmup = updates // 10
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=peak / 25, decay_steps=updates - warmup, warmup_target=peak, warmup_steps=warmup
        )
        momentum = min(0.999, 1 - 10 / max(updates, 20))
        return keras.optimizers.AdamW(rate, weight_decay=0.01, use_ema=True, ema_momentum=momentum)

    return optimiser


def _gentle(seed: int) -> list[keras.Layer]:
    """Augments like the notebook: rotation up to 8 degrees, shift and zoom up to 0.08, shear up to 0.3 degrees.

    The notebook wrote 0.3 for the shear, whose unit in Keras is degrees; its effect is negligible.
    """
    return [RandomWarp(rotation=8, shear=0.3 / 57.3, zoom=0.08, shift=0.08 * 28, bend=0, seed=seed)]


def _handwriting(seed: int) -> list[keras.Layer]:
    """Varies handwriting and pens, and adds scanner damage to a share of the images.

    The amounts were chosen on images of other writers. Warps half as strong again made `flagship-small` worse there, and so
    did damage to twice as many images. Without any damage in training, blur, noise, faint ink and inversion cost
    `flagship-small` more than `convnet`.
    """
    grey = (0, 255)
    return [
        RandomWarp(rotation=8, shear=0.15, zoom=0.08, shift=1.5, bend=1.0, seed=seed),
        RandomStrokeWidth(broader=0.4, finer=0.4, seed=seed + 1),
        layers.RandomErasing(factor=(0.04, 0.04), scale=(0.02, 0.1), fill_value=0, value_range=grey, seed=seed + 2),
        RandomBlur(factor=0.04, limit=2, seed=seed + 3),
        RandomFading(factor=0.05, limit=0.8, seed=seed + 4),
        layers.RandomInvert(factor=(0.01, 0.01), value_range=grey, seed=seed + 5),
        RandomNoise(factor=0.04, limit=80, seed=seed + 6),
    ]


def _fcn512(name: str, batch_size: int, expected: tuple[float, float], claimed: str = "") -> Recipe:
    return Recipe(name, "seed notebook 001", architectures.fcn512, _adam, batch_size, 5, expected, claimed)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="cnn8",
            source="seed notebook 000",
            network=architectures.cnn8,
            optimiser=_adam,
            batch_size=32,
            epochs=100,
            expected=(0.97, 0.985),
            validation_images=10_000,
            patience=2,
        ),
        _fcn512("fcn512", 128, (0.979, 0.983), "over 0.95"),
        _fcn512("fcn512-b32", 32, (0.975, 0.983)),
        _fcn512("fcn512-b10000", 10_000, (0.93, 0.955)),
        Recipe(
            name="bncnn",
            source="seed notebook 001",
            network=architectures.bncnn,
            optimiser=_adam,
            batch_size=128,
            epochs=5,
            expected=(0.992, 0.995),
            claimed="over 0.95",
            steps=60_000 // 128,
            augmentation=_gentle,
        ),
        Recipe(
            name="dense512",
            source="seed notebook 002",
            network=architectures.dense512,
            optimiser=_rmsprop,
            batch_size=128,
            epochs=5,
            expected=(0.9787, 0.9847),
            claimed="0.9817",
        ),
        Recipe(
            name="convnet",
            source="seed notebook 002",
            network=architectures.convnet,
            optimiser=_rmsprop,
            batch_size=64,
            epochs=5,
            expected=(0.9866, 0.9926),
            claimed="0.9896",
        ),
        Recipe(
            name="cnn6k",
            source="seed notebook 003",
            network=architectures.cnn6k,
            optimiser=_adam,
            batch_size=32,
            epochs=10,
            expected=(0.978, 0.985),
            claimed="98%",
            training_images=6_000,
        ),
        Recipe(
            name="mlp128-raw",
            source="seed notebook 004",
            network=architectures.mlp128_raw,
            optimiser=_rmsprop,
            batch_size=256,
            epochs=10,
            expected=(0.93, 0.96),
        ),
        Recipe(
            name="mlp128",
            source="seed notebook 004",
            network=architectures.mlp128,
            optimiser=_rmsprop,
            batch_size=256,
            epochs=10,
            expected=(0.976, 0.981),
        ),
        Recipe(
            name="lenet5",
            source="seed notebook 004",
            network=architectures.lenet5,
            optimiser=_adadelta,
            batch_size=128,
            epochs=10,
            expected=(0.80, 0.93),
        ),
        Recipe(
            name="lenet5-adam",
            source="seed notebook 004",
            network=architectures.lenet5,
            optimiser=_adam,
            batch_size=128,
            epochs=10,
            expected=(0.982, 0.989),
        ),
        Recipe(
            name="cnn3264",
            source="seed notebook 004",
            network=architectures.cnn3264,
            optimiser=_adadelta,
            batch_size=128,
            epochs=10,
            expected=(0.83, 0.85),
        ),
        Recipe(
            name="cnn3264-adam",
            source="seed notebook 004",
            network=architectures.cnn3264,
            optimiser=_adam,
            batch_size=128,
            epochs=10,
            expected=(0.990, 0.993),
        ),
        Recipe(
            name="folded",
            source="ours: the network to deploy",
            network=architectures.folded,
            optimiser=_one_cycle(4e-3),
            batch_size=128,
            epochs=44,
            expected=(0.995, 0.998),
            validation_images=10_000,
            augmentation=_handwriting,
            mixture=Mixture(),
        ),
        Recipe(
            name="flagship",
            source="ours: the surest network on clean digits, which teaches `folded`",
            network=architectures.flagship,
            optimiser=_one_cycle(2e-3),
            batch_size=128,
            epochs=20,
            expected=(0.996, 0.998),
            validation_images=10_000,
            augmentation=_handwriting,
        ),
        Recipe(
            name="flagship-whole",
            source="ours: a large network that refuses what is no digit, the second teacher",
            network=architectures.flagship_whole,
            optimiser=_one_cycle(2e-3),
            batch_size=128,
            epochs=22,
            expected=(0.995, 0.997),
            validation_images=10_000,
            augmentation=_handwriting,
            mixture=Mixture(passes=2, glyphs=0.12, other_pens=0.08, rubbish=0.25, damaged=0.35, teacher=0, doubt=0.1),
        ),
        Recipe(
            name="flagship-small",
            source="ours: a small network, which trains in ten minutes",
            network=architectures.flagship_small,
            optimiser=_one_cycle(3e-3),
            batch_size=128,
            epochs=20,
            expected=(0.995, 0.997),
            validation_images=10_000,
            augmentation=_handwriting,
        ),
    )
}
