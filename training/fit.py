"""Trains one recipe's network, one epoch at a time. An interrupted run resumes after its last complete epoch."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np

from training.batches import Batches, MixedBatches
from training.dataset import Examples
from training.objective import WholeDigit, accuracy, whole_targets
from training.progress import Progress, finished
from training.recipes import Recipe
from training.synthesis.mixture import Teacher

_SETTLING = (40, 500)  # batches, and images per batch, that the averages of batch normalisation are taken anew from


@dataclass(frozen=True)
class Fit:
    """A trained network and the facts of its training.

    Attributes:
        network: float32 pixels (N, 28, 28, 1), 0 paper to 255 ink, to logits (N, 10), or (N, 11) with that of `whole`.
        history: Keras' values per epoch, by name: loss, accuracy, and with validation images val_loss, val_accuracy.
        seconds: training time, without epochs that an interruption discarded.
        backend: Keras backend of the training.
        machine: description of the training machine.
        fingerprint: hash that is equal for runs that train identically.
    """

    network: keras.Model
    history: dict[str, list[float]]
    seconds: float
    backend: str
    machine: str
    fingerprint: str


def fit(
    recipe: Recipe,
    train: Examples,
    validation: Examples,
    seed: int,
    epochs: int,
    checkpoint: Path | None = None,
    logs: Path | None = None,
    teacher: Teacher | None = None,
) -> Fit:
    """Trains `recipe`'s network on `train` for `epochs`, and monitors the loss on `validation`.

    The result has the weights of the last epoch: no epoch is selected by its score. On one machine, equal seeds give equal
    networks, as far as the backend's arithmetic is deterministic.

    Args:
        recipe: network, optimiser, schedule and augmentation.
        train: training images.
        validation: images that are monitored only; may be empty.
        seed: of the initial weights, the order of the images, their distortions and dropout.
        epochs: passes over `train`, at most: a recipe with patience may stop earlier.
        checkpoint: file that holds the state of the run after each epoch. If it exists and belongs to this run, training
            resumes from it. A finished run's checkpoint is valid on any backend. The caller deletes the file.
        logs: directory for TensorBoard; None writes no logs.
        teacher: model whose answers a mixture takes into its targets; None for a recipe without a teacher.

    Raises:
        DivergedError: the loss is no number any more, or beyond all bounds.
        OSError: the checkpoint can't be written.
        ValueError: the recipe's mixture has a teacher, but none is given.
    """
    if recipe.mixture and recipe.mixture.teacher and teacher is None:
        raise ValueError(f"recipe {recipe.name} takes a teacher; `find_teacher` loads it")
    identity = fingerprint(recipe, train, validation, seed, epochs, teacher)
    keras.utils.set_random_seed(seed)
    network = recipe.network()
    batches = _batches(recipe, train, seed, teacher)
    metric: str | Callable[..., keras.KerasTensor]
    if isinstance(batches, MixedBatches):
        trainer, objective, metric = fed_with_pixels(network), WholeDigit(), accuracy
        monitored = whole_targets(validation.labels)
    else:
        trainer = fed_with_pixels(network, recipe.augmentation(seed) if recipe.augmentation else [])
        objective, metric = keras.losses.SparseCategoricalCrossentropy(from_logits=True), "accuracy"
        monitored = validation.labels
    trainer.compile(recipe.optimiser(epochs * len(batches)), objective, metrics=[metric])
    trainer.optimizer.build(trainer.trainable_variables)
    progress = Progress(trainer, batches, epochs, recipe.patience, checkpoint, identity)
    progress.resume()
    if progress.epochs_done:
        print(f"resume     after epoch {progress.epochs_done}, from {checkpoint}", flush=True)
    if not finished(progress.history, epochs, recipe.patience):
        batches.begin(progress.epochs_done)  # Keras looks at the first batch before the first epoch begins
        trainer.fit(
            batches,
            epochs=epochs,
            initial_epoch=progress.epochs_done,
            validation_data=(validation.images, monitored) if len(validation) else None,
            validation_batch_size=500,
            shuffle=False,  # Keras would shuffle the batches with a random state that no checkpoint holds
            callbacks=[
                progress,
                # Validation should use the averaged weights, which are published.
                *([keras.callbacks.SwapEMAWeights()] if trainer.optimizer.use_ema else []),
                *([keras.callbacks.TensorBoard(str(logs))] if logs else []),
            ],
            verbose=1 if sys.stdout.isatty() else 2,  # a progress bar on a terminal, one line per epoch in a log
        )
    else:
        # `trainer.fit` would average the weights too.
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
    if isinstance(batches, MixedBatches):
        _settle(network, batches, progress.epochs_done)
    return Fit(network, progress.history, progress.seconds, progress.backend, progress.machine, identity)


def fed_with_pixels(network: keras.Model, distortions: Sequence[keras.Layer] = ()) -> keras.Sequential:
    """Wraps `network`, with `distortions` before it, to accept stored images: (N, 28, 28) uint8."""
    to_float32 = keras.layers.Rescaling(1.0)
    return keras.Sequential(
        [keras.Input((28, 28), dtype="uint8"), keras.layers.Reshape((28, 28, 1)), to_float32, *distortions, network]
    )


def checkpoint_name(name: str, seed: int, epochs: int) -> str:
    """Returns the name of the checkpoint file for a run of recipe `name`."""
    return f"{name}-seed{seed}-epochs{epochs}.npz"


def fingerprint(
    recipe: Recipe, train: Examples, validation: Examples, seed: int, epochs: int, teacher: Teacher | None = None
) -> str:
    """Returns a hash of the data and settings of a run; a run resumes only from a checkpoint with the same hash.

    The hash covers the data and every setting of network, distortions and optimiser. It covers neither their source code nor
    the backend, which the checkpoint records separately.
    """
    keras.utils.clear_session()  # frees the memory of earlier runs and resets the layer names, which the hash includes
    updates = epochs * len(_batches(recipe, train, seed, teacher))
    parts = [recipe.network(), recipe.optimiser(updates), *(recipe.augmentation(seed) if recipe.augmentation else [])]
    settings = [
        *(recipe.name, recipe.batch_size, recipe.steps, recipe.patience, seed, epochs),
        *(part.get_config() for part in parts),
        *(train.digest(), validation.digest(), keras.__version__),
        *([asdict(recipe.mixture), teacher and teacher.sha256] if recipe.mixture else []),
    ]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _batches(recipe: Recipe, train: Examples, seed: int, teacher: Teacher | None) -> Batches | MixedBatches:
    """Returns the batches of a run; those of a mixture draw nothing before its first epoch begins."""
    if recipe.mixture:
        return MixedBatches(recipe.mixture, train, recipe.augmentation, teacher, recipe.batch_size, seed)
    return Batches(train, recipe.batch_size, seed, recipe.steps)


def _settle(network: keras.Model, batches: MixedBatches, epoch: int) -> None:
    """Takes the averages of batch normalisation anew: those of the training belong to weights that were not averaged.

    Source: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization, arXiv 1803.05407.
    """
    batches.begin(epoch)
    count, size = _SETTLING
    for start in range(0, min(count * size, len(batches.images)), size):
        network(batches.images[start : start + size, ..., None].astype(np.float32), training=True)
