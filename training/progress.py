"""The state of a training run, saved after each epoch, so that an interrupted run resumes."""

import io
import json
import os
import platform
import sys
import time
import zipfile
from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from training.files import write_whole

DIVERGED = 1e6  # nats of loss; guessing costs 2.3


class DivergedError(Exception):
    """The loss of a training is not finite, or beyond `DIVERGED`; the message gives the remedy."""


class Epochs(Protocol):
    """Batches that change from epoch to epoch."""

    def begin(self, epoch: int) -> None:
        """Prepares the batches of `epoch`."""


class Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """The state of a run, kept in memory and, if a checkpoint is given, on disk."""

    def __init__(
        self,
        trainer: keras.Model,
        batches: Epochs,
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
        """Number of complete epochs."""
        return len(self.history.get("loss", []))

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Prepares the batches."""
        self._began = time.monotonic()
        self.batches.begin(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Saves the state and stops training when it is finished. Raises DivergedError."""
        loss = float((logs or {})["loss"])
        if not loss <= DIVERGED:  # also for NaN
            raise DivergedError(
                f"the training diverged: its loss is {loss:.3g} after epoch {epoch + 1}; lower the learning rate"
            )
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.seconds += time.monotonic() - self._began
        self._save()
        self.trainer.stop_training = finished(self.history, self.epochs, self.patience)

    def resume(self) -> None:
        """Restores the state from the checkpoint, if it belongs to this run."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with self.checkpoint.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                about = json.loads(str(saved["about"]))
                if about["fingerprint"] != self.fingerprint:
                    reason = "belongs to a run with other data or settings"
                    print(f"checkpoint {self.checkpoint} {reason}; starting from the beginning", file=sys.stderr)
                    return
                values = [saved[str(index)] for index in range(len(self._state()))]
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"checkpoint {self.checkpoint} can't be read ({error}); starting from the beginning", file=sys.stderr)
            return
        if about["backend"] != self.backend and not finished(about["history"], self.epochs, self.patience):
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
        about = {
            "fingerprint": self.fingerprint,
            "history": self.history,
            "seconds": self.seconds,
            "backend": self.backend,
            "machine": self.machine,
        }
        arrays = {str(index): keras.ops.convert_to_numpy(value) for index, value in enumerate(self._state())}
        content = io.BytesIO()
        np.savez(content, about=np.array(json.dumps(about)), **arrays)
        write_whole(self.checkpoint, content.getvalue())

    def _state(self) -> list[keras.Variable]:
        """Returns weights, averages, optimiser state and the state of every random generator."""
        return [*self.trainer.variables, *self.trainer.optimizer.variables]


def finished(history: dict[str, list[float]], epochs: int, patience: int | None) -> bool:
    """Tests if all epochs are done, or `patience` epochs have passed without a lower validation loss."""
    losses = history.get("val_loss", [])
    waited = len(losses) - 1 - int(np.argmin(losses)) if losses else 0
    return len(history.get("loss", [])) >= epochs or (patience is not None and waited >= patience)
