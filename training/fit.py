"""Trains one recipe's network, one epoch at a time. An interrupted run resumes after its last complete epoch."""

import hashlib
import io
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from training.dataset import Examples
from training.files import write_whole
from training.recipes import Recipe


@dataclass(frozen=True)
class Fit:
    """A trained network and the facts of its training.

    Attributes:
        network: float32 pixels (N, 28, 28, 1), 0 paper to 255 ink, to logits (N, 10).
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


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """Batches of images and labels, shuffled for each epoch by the seed and the epoch number alone.

    Args:
        examples: training images and labels.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        seed: of the shuffling.
        steps: maximum number of batches per epoch; None uses all.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, steps: int | None = None):
        super().__init__()
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        batches = -(-len(examples) // batch_size)
        self.steps = min(steps or batches, batches)
        self.begin(0)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.examples.images[chosen], self.examples.labels[chosen]

    def begin(self, epoch: int) -> None:
        """Shuffles for `epoch`. Keras' own hook `on_epoch_end` is unsuitable: it is called twice after some epochs."""
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))


def fit(
    recipe: Recipe,
    train: Examples,
    validation: Examples,
    seed: int,
    epochs: int,
    checkpoint: Path | None = None,
    logs: Path | None = None,
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

    Raises:
        OSError: the checkpoint can't be written.
    """
    identity = fingerprint(recipe, train, validation, seed, epochs)
    keras.utils.set_random_seed(seed)
    network = recipe.network()
    trainer = fed_with_pixels(network, recipe.augmentation(seed) if recipe.augmentation else [])
    batches = Batches(train, recipe.batch_size, seed, recipe.steps)
    trainer.compile(
        recipe.optimiser(epochs * len(batches)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    trainer.optimizer.build(trainer.trainable_variables)
    progress = _Progress(trainer, batches, epochs, recipe.patience, checkpoint, identity)
    progress.resume()
    if progress.epochs_done:
        print(f"resume     after epoch {progress.epochs_done}, from {checkpoint}", flush=True)
    if not _finished(progress.history, epochs, recipe.patience):
        trainer.fit(
            batches,
            epochs=epochs,
            initial_epoch=progress.epochs_done,
            validation_data=(validation.images, validation.labels) if len(validation) else None,
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
        trainer.optimizer.finalize_variable_values(
            trainer.trainable_variables
        )  # `trainer.fit` would average the weights too
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


def fingerprint(recipe: Recipe, train: Examples, validation: Examples, seed: int, epochs: int) -> str:
    """Returns a hash of the data and settings of a run; a run resumes only from a checkpoint with the same hash.

    The hash covers the data and every setting of network, distortions and optimiser. It covers neither their source code nor
    the backend, which the checkpoint records separately.
    """
    keras.utils.clear_session()  # frees the memory of earlier runs and resets the layer names, which the hash includes
    updates = epochs * len(Batches(train, recipe.batch_size, seed, recipe.steps))
    parts = [recipe.network(), recipe.optimiser(updates), *(recipe.augmentation(seed) if recipe.augmentation else [])]
    settings = [
        *(recipe.name, recipe.batch_size, recipe.steps, recipe.patience, seed, epochs),
        *(part.get_config() for part in parts),
        *(train.digest(), validation.digest(), keras.__version__),
    ]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class _Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """The state of a run, kept in memory and, if a checkpoint is given, on disk."""

    def __init__(
        self,
        trainer: keras.Model,
        batches: Batches,
        epochs: int,
        patience: int | None,
        checkpoint: Path | None,
        fingerprint: str,
    ):
        super().__init__()
        self.trainer = trainer
        self.batches = batches
        self.epochs = epochs
        self.patience = patience
        self.checkpoint = checkpoint
        self.fingerprint = fingerprint
        self.history: dict[str, list[float]] = {}
        self.seconds = 0.0
        self.backend = keras.backend.backend()
        self.machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"

    @property
    def epochs_done(self) -> int:
        return len(self.history.get("loss", []))

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.batches.begin(epoch)
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.seconds += time.monotonic() - self._began
        self._save()
        self.trainer.stop_training = _finished(self.history, self.epochs, self.patience)

    def resume(self) -> None:
        """Restores the state from the checkpoint, if it belongs to this run."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with self.checkpoint.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                about = json.loads(str(saved["about"]))
                values = [saved[str(index)] for index in range(len(self._state()))]
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"checkpoint {self.checkpoint} can't be read ({error}); starting from the beginning", file=sys.stderr)
            return
        if about["fingerprint"] != self.fingerprint:
            reason = "belongs to a run with other data or settings"
            print(f"checkpoint {self.checkpoint} {reason}; starting from the beginning", file=sys.stderr)
            return
        if about["backend"] != self.backend and not _finished(about["history"], self.epochs, self.patience):
            reason = f"was written by an unfinished run on {about['backend']}, and this is {self.backend}"
            print(f"checkpoint {self.checkpoint} {reason}; starting from the beginning", file=sys.stderr)
            return
        self.history, self.seconds = about["history"], about["seconds"]
        self.backend, self.machine = about["backend"], about["machine"]
        for variable, value in zip(self._state(), values, strict=True):
            variable.assign(value)

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        names = ("fingerprint", "history", "seconds", "backend", "machine")
        about = json.dumps({name: getattr(self, name) for name in names})
        arrays = {str(index): keras.ops.convert_to_numpy(value) for index, value in enumerate(self._state())}
        content = io.BytesIO()
        np.savez(content, about=np.array(about), **arrays)
        write_whole(self.checkpoint, content.getvalue())

    def _state(self) -> list[keras.Variable]:
        """Returns weights, averages, optimiser state and the state of every random generator."""
        return [*self.trainer.variables, *self.trainer.optimizer.variables]


def _finished(history: dict[str, list[float]], epochs: int, patience: int | None) -> bool:
    """Tests if all epochs are done, or `patience` epochs have passed without a lower validation loss."""
    losses = history.get("val_loss", [])
    waited = len(losses) - 1 - int(np.argmin(losses)) if losses else 0
    return len(history.get("loss", [])) >= epochs or (patience is not None and waited >= patience)
