"""Trains one recipe's network, an epoch at a time; a run that is cut off goes on after its last whole epoch."""

import hashlib
import io
import json
import os
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from training import architectures, augmentation, recipes
from training.dataset import Examples
from training.recipes import Recipe


@dataclass(frozen=True)
class Fit:
    """A trained network, and how it came about.

    Attributes:
        network: float32 pixels (N, 28, 28, 1), 0 paper to 255 ink, to logits (N, 10).
        history: Keras' figures for each epoch, by name: loss, accuracy, and with validation images val_loss, val_accuracy.
        seconds: how long training took, without what an interruption lost.
    """

    network: keras.Model
    history: dict[str, list[float]]
    seconds: float


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """Batches of images and labels, shuffled anew for each epoch by the seed and the epoch's number alone.

    Args:
        examples: what to learn from.
        batch_size: images a batch; the last one of an epoch may be smaller.
        seed: of the shuffling.
        steps: batches an epoch; None takes all.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, steps: int | None = None):
        super().__init__()
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.steps = steps or -(-len(examples) // batch_size)
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
            goes on from it. The caller removes it when it is no longer needed.
        logs: directory for TensorBoard; None writes no logs.

    Raises:
        OSError: the checkpoint can't be written.
    """
    keras.utils.set_random_seed(seed)
    network = recipe.network()
    trainer = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Rescaling(1.0),  # to float32
            *(recipe.augmentation(seed) if recipe.augmentation else []),
            network,
        ]
    )
    batches = Batches(train, recipe.batch_size, seed, recipe.steps)
    trainer.compile(
        recipe.optimiser(epochs * len(batches)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    trainer.optimizer.build(trainer.trainable_variables)
    fingerprint = _fingerprint(recipe, train, validation, seed, epochs)
    progress = _Progress(trainer, batches, recipe.patience, checkpoint, fingerprint)
    progress.resume()
    if progress.epochs_done:
        print(f"resume     after epoch {progress.epochs_done}, from {checkpoint}", flush=True)
    if not progress.finished(epochs):
        trainer.fit(
            batches,
            epochs=epochs,
            initial_epoch=progress.epochs_done,
            validation_data=(validation.images, validation.labels) if len(validation) else None,
            validation_batch_size=500,
            shuffle=False,  # Keras would change the order of the batches, from a source that no checkpoint holds
            callbacks=[progress, *([keras.callbacks.TensorBoard(str(logs))] if logs else [])],
            verbose=1 if sys.stdout.isatty() else 2,  # a bar that moves, or one line an epoch in a log
        )
    else:
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)  # averages, as `trainer.fit` does at its end
    return Fit(network, progress.history, progress.seconds)


def logits(network: keras.Model, images: np.ndarray) -> np.ndarray:
    """What `network` says of `images`, (N, 28, 28) uint8: (N, 10) float32, one row an image, larger where likelier."""
    answer: np.ndarray = network.predict(images[..., None].astype(np.float32), batch_size=500, verbose=0)
    return answer


class _Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """What a run has come to, kept in memory and, given a checkpoint, on disk."""

    def __init__(
        self, trainer: keras.Model, batches: Batches, patience: int | None, checkpoint: Path | None, fingerprint: str
    ):
        super().__init__()
        self.trainer = trainer
        self.batches = batches
        self.patience = patience
        self.checkpoint = checkpoint
        self.fingerprint = fingerprint
        self.history: dict[str, list[float]] = {}
        self.seconds = 0.0

    @property
    def epochs_done(self) -> int:
        return len(self.history.get("loss", []))

    def finished(self, epochs: int) -> bool:
        """Whether all epochs are done, or `patience` of them have passed without a lower validation loss."""
        losses = self.history.get("val_loss", [])
        waited = len(losses) - 1 - int(np.argmin(losses)) if losses else 0
        return self.epochs_done >= epochs or (self.patience is not None and waited >= self.patience)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.batches.begin(epoch)
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.seconds += time.monotonic() - self._began
        self._save()
        self.trainer.stop_training = self.finished(epoch + 2)

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
            print(f"{self.checkpoint} is of other data, code or settings: starting anew", file=sys.stderr)
            return
        for variable, value in zip(self._state(), values, strict=True):
            variable.assign(value)
        self.history, self.seconds = about["history"], about["seconds"]

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        about = json.dumps({"fingerprint": self.fingerprint, "history": self.history, "seconds": self.seconds})
        arrays = {str(place): keras.ops.convert_to_numpy(value) for place, value in enumerate(self._state())}
        content = io.BytesIO()
        np.savez(content, about=np.array(about), **arrays)
        aside = self.checkpoint.with_suffix(".part")
        aside.write_bytes(content.getbuffer())
        aside.replace(self.checkpoint)

    def _state(self) -> list[keras.Variable]:
        """Weights, averages, the optimiser's memory and the state of every source of random numbers."""
        return [*self.trainer.variables, *self.trainer.optimizer.variables]


def _fingerprint(recipe: Recipe, train: Examples, validation: Examples, seed: int, epochs: int) -> str:
    """The same for two runs exactly when one can go on where the other stopped."""
    digest = hashlib.sha256()
    for part in (train.images, train.labels, validation.images, validation.labels):
        digest.update(np.ascontiguousarray(part).data)
    for module in (architectures, augmentation, recipes):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    about = [recipe.name, recipe.batch_size, seed, epochs, keras.__version__, keras.backend.backend(), os.cpu_count()]
    digest.update(json.dumps(about).encode())
    return digest.hexdigest()
