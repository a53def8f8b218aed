"""Trains one recipe's network, an epoch at a time; a run that is cut off goes on after its last whole epoch."""

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
    """A trained network, and how it came about.

    Attributes:
        network: float32 pixels (N, 28, 28, 1), 0 paper to 255 ink, to logits (N, 10).
        history: Keras' figures for each epoch, by name: loss, accuracy, and with validation images val_loss, val_accuracy.
        seconds: how long training took, without what an interruption lost.
        backend: what Keras ran on.
        machine: where that was.
        fingerprint: the same for runs that train alike.
    """

    network: keras.Model
    history: dict[str, list[float]]
    seconds: float
    backend: str
    machine: str
    fingerprint: str


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """Batches of images and labels, shuffled anew for each epoch by the seed and the epoch's number alone.

    Args:
        examples: what to learn from.
        batch_size: images a batch; the last one of an epoch may be smaller.
        seed: of the shuffling.
        steps: batches an epoch, at most; None takes all.
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
        """Shuffles for `epoch`. Keras' own sign, `on_epoch_end`, comes twice after some epochs."""
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
    """Trains `recipe`'s network on `train` for `epochs`, watching `validation` where there is any.

    The last epoch's weights are the result: no epoch is picked by its score. On one machine, the same seed gives the same
    network as far as the backend's own arithmetic allows.

    Args:
        recipe: what to train, and how.
        train: the images to learn from.
        validation: images that are only watched; empty for none.
        seed: of the first weights, the order of the images, their distortions and dropout.
        epochs: passes over `train`, at most: a recipe with patience may stop earlier.
        checkpoint: file that holds the state of the run after each epoch; where it is there and of this very run, the run
            goes on from it. One that is finished serves any backend. The caller removes it when it is no longer needed.
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
            shuffle=False,  # Keras would change the order of the batches, from a source that no checkpoint holds
            callbacks=[
                progress,
                *([keras.callbacks.SwapEMAWeights()] if trainer.optimizer.use_ema else []),  # watch what is published
                *([keras.callbacks.TensorBoard(str(logs))] if logs else []),
            ],
            verbose=1 if sys.stdout.isatty() else 2,  # a bar that moves, or one line an epoch in a log
        )
    else:
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)  # averages, as `trainer.fit` does at its end
    return Fit(network, progress.history, progress.seconds, progress.backend, progress.machine, identity)


def fed_with_pixels(network: keras.Model, distortions: Sequence[keras.Layer] = ()) -> keras.Sequential:
    """`network` behind `distortions`, on images as they are stored: (N, 28, 28) uint8."""
    to_float32 = keras.layers.Rescaling(1.0)
    return keras.Sequential(
        [keras.Input((28, 28), dtype="uint8"), keras.layers.Reshape((28, 28, 1)), to_float32, *distortions, network]
    )


def checkpoint_name(name: str, seed: int, epochs: int) -> str:
    """The name of the file that keeps the state of a run of recipe `name`."""
    return f"{name}-seed{seed}-epochs{epochs}.npz"


def fingerprint(recipe: Recipe, train: Examples, validation: Examples, seed: int, epochs: int) -> str:
    """A hash that is the same for two runs exactly when one can go on where the other stopped.

    It covers the data and every setting of network, distortions and optimiser, but not the code behind them.
    """
    keras.utils.clear_session()  # frees what earlier runs left, and layers are named as if this were the first
    updates = epochs * len(Batches(train, recipe.batch_size, seed, recipe.steps))
    parts = [recipe.network(), recipe.optimiser(updates), *(recipe.augmentation(seed) if recipe.augmentation else [])]
    about = [
        *(recipe.name, recipe.batch_size, recipe.steps, recipe.patience, seed, epochs),
        *(part.get_config() for part in parts),
        *(train.digest(), validation.digest(), keras.__version__),
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def logits(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """What `network` says of `images`, (N, 28, 28) uint8: (N, 10) float32, one row an image, larger where likelier."""
    answer: np.ndarray = network.predict(images[..., None].astype(np.float32), batch_size=500, verbose=0)
    return answer


class _Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """What a run has come to, kept in memory and, given a checkpoint, on disk."""

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
        """Takes up the state that the checkpoint holds, if it is of this run."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with self.checkpoint.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                about = json.loads(str(saved["about"]))
                values = [saved[str(place)] for place in range(len(self._state()))]
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{self.checkpoint} can't be read ({error}): starting anew", file=sys.stderr)
            return
        if about["fingerprint"] != self.fingerprint:
            print(f"{self.checkpoint} is of other data or settings: starting anew", file=sys.stderr)
            return
        if about["backend"] != self.backend and not _finished(about["history"], self.epochs, self.patience):
            print(f"{self.checkpoint} was begun on {about['backend']}: starting anew", file=sys.stderr)
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
        arrays = {str(place): keras.ops.convert_to_numpy(value) for place, value in enumerate(self._state())}
        content = io.BytesIO()
        np.savez(content, about=np.array(about), **arrays)
        write_whole(self.checkpoint, content.getvalue())

    def _state(self) -> list[keras.Variable]:
        """Weights, averages, the optimiser's memory and the state of every source of random numbers."""
        return [*self.trainer.variables, *self.trainer.optimizer.variables]


def _finished(history: dict[str, list[float]], epochs: int, patience: int | None) -> bool:
    """Whether all epochs are done, or `patience` of them have passed without a lower validation loss."""
    losses = history.get("val_loss", [])
    waited = len(losses) - 1 - int(np.argmin(losses)) if losses else 0
    return len(history.get("loss", [])) >= epochs or (patience is not None and waited >= patience)
