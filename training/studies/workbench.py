"""The resources of a study: the data, networks that are trained once for all studies, and the directory for results."""

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
from training.evaluate import predict_logits
from training.fit import checkpoint_name, fingerprint, fit
from training.recipes import RECIPES
from training.teacher import find_teacher


@dataclass(frozen=True)
class Trained:
    """A recipe's trained network with its answers for the test images.

    Attributes:
        recipe: name of the recipe.
        network: float32 pixels (N, 28, 28, 1) to logits (N, 10).
        history: Keras' values per epoch, by name.
        seconds: training time.
        answers: (N, 10) float32, its logits for the test images.
        accuracy: test accuracy.
    """

    recipe: str
    network: keras.Model
    history: dict[str, list[float]]
    seconds: float
    answers: np.ndarray
    accuracy: float

    @property
    def epochs(self) -> int:
        """Number of trained epochs."""
        return len(self.history["loss"])


class DetectionError(Exception):
    """A file for `detection` is invalid; the message gives the error and its position."""


@dataclass(frozen=True)
class DetectorFiles:
    """The user's files for `detection`.

    Attributes:
        photo: image file in which to detect objects.
        weights: the detector's Darknet .weights file.
        names: text file with the class names, one per line.
        cfg: the detector's Darknet .cfg file; None for YOLOv3.
    """

    photo: Path
    weights: Path
    names: Path
    cfg: Path | None = None


class Workbench:
    """The data, the networks and the directory for results, shared by the studies of one command.

    Args:
        load: returns MNIST; called once, when a study first needs images.
        out: existing directory for the results.
        seed: of every random choice.
        epochs: of each training; None uses the recipe's number.
        recipes: recipes to study, if the study leaves the choice; empty for the study's default.
        models: directory with versions that `digits-train run` published, at any depth. A network found there with the right
            seed and epochs is not trained again. None searches no directory.
        detector_files: the photo and the detector for `detection`; None if they were not given.
    """

    def __init__(
        self,
        load: Callable[[], Dataset],
        out: Path,
        seed: int = 0,
        epochs: int | None = None,
        recipes: Sequence[str] = (),
        models: Path | None = None,
        detector_files: DetectorFiles | None = None,
    ):
        self._load = load
        self.out = out
        self.seed = seed
        self.epochs = epochs
        self.recipes = tuple(recipes)
        self.models = models
        self.detector_files = detector_files
        self.written: list[Path] = []

    @cached_property
    def dataset(self) -> Dataset:
        """MNIST, loaded on first use."""
        return self._load()

    def trained(self, name: str) -> Trained:
        """Returns the network of recipe `name`, trained as `digits-train run` would train it.

        A matching version in `models` is used if there is one. Otherwise training resumes from the checkpoint in
        `out`/.trained that an earlier or interrupted study left.
        """
        recipe, test = RECIPES[name], self.dataset.test
        epochs = self.epochs or recipe.epochs
        train, validation = recipe.split(self.dataset, self.seed)
        version, teacher = None, find_teacher(recipe)
        if self.models:
            identity = fingerprint(recipe, train, validation, self.seed, epochs, teacher)
            version = version_directory.find(self.models, identity)
        if version and (version / "model.keras").exists():
            record = version_directory.read_record(version)
            network = version_directory.load_network(version)
            history, seconds = record["history"], record["fit_seconds"]
            print(f"{name}: from {version}", flush=True)
        else:
            print(f"{name}: {len(train):,} images, {epochs} epochs at most, seed {self.seed}", flush=True)
            checkpoint = self.checkpoint(name, epochs)
            fitted = fit(recipe, train, validation, self.seed, epochs, checkpoint, teacher=teacher)
            network, history, seconds = fitted.network, fitted.history, fitted.seconds
        answers = predict_logits(network, test.images)
        accuracy = float((answers.argmax(axis=1) == test.labels).mean())
        return Trained(name, network, history, seconds, answers, accuracy)

    def checkpoint(self, name: str, epochs: int) -> Path:
        """Returns the checkpoint file of a training, so that it runs only once."""
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
