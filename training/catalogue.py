"""All recipes, several seeds each, beside what their sources claim: one table."""

import statistics
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training import pipeline, version_directory
from training.dataset import Dataset
from training.files import write_whole
from training.fit import fingerprint
from training.recipes import Recipe
from training.verify import Exported


@dataclass(frozen=True)
class Row:
    """What the runs of one recipe came to.

    Attributes:
        recipe: the recipe.
        records: the run record of each seed.
        latency: seconds of one core that ONNX Runtime takes over one image, median.
    """

    recipe: Recipe
    records: list[dict[str, Any]]
    latency: float

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each seed."""
        return [record["test"]["accuracy"] for record in self.records]

    @property
    def within(self) -> bool:
        """Whether the mean accuracy lies in the range that was expected of the recipe."""
        low, high = self.recipe.expected
        return low <= statistics.mean(self.accuracies) <= high


def catalogue(recipes: Iterable[Recipe], asked: Collection[str], dataset: Dataset, seeds: int, models: Path) -> str:
    """Runs the recipes asked for with the seeds 0 to `seeds` - 1, and tells what came of all that were ever run.

    `models` becomes a model repository with one model a recipe, and holds the table as `catalogue.md`. A run whose version
    is there already is not made again; one that was cut off goes on.

    Args:
        recipes: all that the table may have, in its order.
        asked: the names of those to run.
        dataset: what they learn from and are judged by.
        seeds: how many runs of each.
        models: the model repository.

    Returns:
        The table, as Markdown.

    Raises:
        ExportError, OSError, VerificationError: as `pipeline.run`.
        VersionError, VerificationError: a version that is there is damaged.
    """
    rows: dict[str, Row] = {}
    recipes = list(recipes)
    for run in (False, True):  # first what is there, so that the table is never less than it was
        for recipe in recipes:
            if run and recipe.name not in asked:
                continue
            found = [_version(recipe, dataset, seed, models / recipe.name, run) for seed in range(seeds)]
            versions_there = [version for version in found if version]
            if versions_there:
                records = [version_directory.read_record(version) for version in versions_there]
                rows[recipe.name] = Row(recipe, records, _latency(versions_there[0], dataset.test.images[:1]))
                text = table([rows[recipe.name] for recipe in recipes if recipe.name in rows])
                write_whole(models / "catalogue.md", text.encode())
    return text


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines: list[str] = []
    for row in rows:
        low, high = row.recipe.expected
        cells = {
            "recipe": f"`{row.recipe.name}`",
            "source": row.recipe.source,
            "claimed": row.recipe.claimed,
            "expected": f"{low:g} to {high:g}",
            "seeds": f"{len(row.records)}",
            "accuracy, mean": f"**{statistics.mean(row.accuracies):.4f}**",
            "lowest to highest": f"{min(row.accuracies):.4f} to {max(row.accuracies):.4f}",
            "in range": "yes" if row.within else "no",
            "parameters": f"{row.records[0]['parameters']:,}",
            "training, s": f"{statistics.median(record['fit_seconds'] for record in row.records):,.0f}",
            "ONNX, µs": f"{row.latency * 1e6:,.0f}",
        }
        if not lines:
            lines += [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]
        lines.append(f"| {' | '.join(cells.values())} |")
    return "\n".join(lines) + "\n"


def _version(recipe: Recipe, dataset: Dataset, seed: int, directory: Path, run: bool) -> Path | None:
    """The version directory of one run; unless it is there, it is made or, where nothing is to be run, None."""
    found = version_directory.find(directory, fingerprint(recipe, *recipe.split(dataset, seed), seed, recipe.epochs))
    if found or not run:
        return found
    return pipeline.run(recipe, dataset, seed, recipe.epochs, directory)


def _latency(version: Path, image: np.ndarray) -> float:
    exported = Exported(version / "model.onnx", threads=1)  # as the service runs it
    seconds = []
    for _ in range(300):
        start = time.thread_time()
        exported.answers(image)
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds)
