"""What a study works with: the data, networks that are trained once for all studies, and the place for its results."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from training import figures, version_directory
from training.dataset import Dataset
from training.fit import checkpoint_name, fingerprint, fit, logits
from training.recipes import RECIPES


@dataclass(frozen=True)
class Trained:
    """A recipe's network, judged on the test images.

    Attributes:
        recipe: its name.
        network: float32 pixels (N, 28, 28, 1) to logits (N, 10).
        history: Keras' figures for each epoch, by name.
        seconds: how long training took.
        answers: (N, 10) float32, its logits for the test images.
        accuracy: share of the test images read right.
    """

    recipe: str
    network: keras.Model
    history: dict[str, list[float]]
    seconds: float
    answers: np.ndarray
    accuracy: float

    @property
    def epochs(self) -> int:
        """How many were trained."""
        return len(self.history["loss"])


class DetectionError(Exception):
    """What the user brings for `detection` is not what it should be; the message says what is wrong, and where."""


@dataclass(frozen=True)
class Brought:
    """What the user brings for `detection`.

    Attributes:
        photo: an image file to look for things in.
        weights: a detector's weights, as Darknet keeps them.
        names: a text file that names its classes, one a line.
        cfg: its layers, as Darknet keeps them; None for those of YOLOv3.
    """

    photo: Path
    weights: Path
    names: Path
    cfg: Path | None = None


class Workbench:
    """The data, the networks and the directory for results, shared by the studies of one command.

    Args:
        load: gives MNIST; called once, and only when a study looks at images.
        out: directory for the results; it is there.
        seed: of every random choice.
        epochs: of each training; None takes the recipe's own.
        recipes: those to study, where a study leaves the choice; empty for its own choice.
        models: directory with versions that `digits-train run` has left, at any depth; a network that is there with the
            seed and the epochs wanted is not trained again. None looks nowhere.
        brought: the photo and the detector for `detection`; None where there are none.
    """

    def __init__(
        self,
        load: Callable[[], Dataset],
        out: Path,
        seed: int = 0,
        epochs: int | None = None,
        recipes: Sequence[str] = (),
        models: Path | None = None,
        brought: Brought | None = None,
    ):
        self._load = load
        self.out = out
        self.seed = seed
        self.epochs = epochs
        self.recipes = tuple(recipes)
        self.models = models
        self.brought = brought
        self.written: list[Path] = []

    @cached_property
    def dataset(self) -> Dataset:
        """MNIST, loaded when it is first asked for."""
        return self._load()

    def trained(self, name: str) -> Trained:
        """The network of recipe `name`, as `digits-train run` would train it.

        It is taken from `models` where it is there, and from the checkpoint in `out`/.trained where an earlier study, or
        one that was interrupted, left it.
        """
        recipe, test = RECIPES[name], self.dataset.test
        epochs = self.epochs or recipe.epochs
        train, validation = recipe.split(self.dataset, self.seed)
        version = None
        if self.models:
            version = version_directory.find(self.models, fingerprint(recipe, train, validation, self.seed, epochs))
        if version and (version / "model.keras").exists():
            record = version_directory.read_record(version)
            network = version_directory.load_network(version)
            history, seconds = record["history"], record["fit_seconds"]
            print(f"{name}: from {version}", flush=True)
        else:
            print(f"{name}: {len(train):,} images, {epochs} epochs at most, seed {self.seed}", flush=True)
            fitted = fit(recipe, train, validation, self.seed, epochs, self.checkpoint(name, epochs))
            network, history, seconds = fitted.network, fitted.history, fitted.seconds
        answers = logits(network, test.images)
        accuracy = float((answers.argmax(axis=1) == test.labels).mean())
        return Trained(name, network, history, seconds, answers, accuracy)

    def checkpoint(self, name: str, epochs: int) -> Path:
        """The file that keeps a training's state, so that it is never done twice."""
        directory = self.out / ".trained"
        directory.mkdir(exist_ok=True)
        return directory / checkpoint_name(name, self.seed, epochs)

    def picture(self, name: str, figure: Figure) -> None:
        """Writes `figure` to NAME.png."""
        self._write(f"{name}.png", figures.png(figure))

    def photo(self, name: str, image: Image.Image) -> None:
        """Writes `image` to NAME.png."""
        content = io.BytesIO()
        image.save(content, "PNG")
        self._write(f"{name}.png", content.getvalue())

    def table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Writes `rows` to NAME.csv."""
        path = self.out / f"{name}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        self.written.append(path)

    def _write(self, name: str, content: bytes) -> None:
        path = self.out / name
        path.write_bytes(content)
        self.written.append(path)
