"""Runs all recipes with several seeds each and tabulates their accuracy beside the claims of their sources."""

import statistics
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training import pipeline, version_directory
from training.dataset import Dataset
from training.exported import Exported
from training.files import write_whole
from training.fit import fingerprint
from training.recipes import Recipe
from training.teacher import find_teacher


@dataclass(frozen=True)
class Row:
    """Results of one recipe's runs.

    Attributes:
        recipe: the recipe.
        records: one run record per seed.
        latency: median seconds of one core that ONNX Runtime needs for one image.
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
        """Tests if the mean accuracy lies in the recipe's expected range."""
        low, high = self.recipe.expected
        return low <= statistics.mean(self.accuracies) <= high


def catalogue(recipes: Iterable[Recipe], selected: Collection[str], dataset: Dataset, seeds: int, models: Path) -> str:
    """Runs the selected recipes with the seeds 0 to `seeds` - 1 and tabulates these runs and all earlier ones.

    `models` becomes a model repository with one model per recipe, and holds the table as `catalogue.md`. Existing versions
    are reused, and an interrupted run is resumed.

    Args:
        recipes: all recipes that the table may contain, in the table's order.
        selected: names of the recipes to run.
        dataset: training and test images.
        seeds: number of runs per recipe.
        models: the model repository.

    Returns:
        The table, as Markdown.

    Raises:
        ExportError, OSError, VerificationError: see `pipeline.run`.
        VersionError, VerificationError: an existing version is damaged.
    """
    rows: dict[str, Row] = {}
    recipes = list(recipes)
    for run in (False, True):  # existing versions come first, so that an interrupted catalogue never loses a row
        for recipe in recipes:
            if run and recipe.name not in selected:
                continue
            found = [_version(recipe, dataset, seed, models / recipe.name, run) for seed in range(seeds)]
            versions = [version for version in found if version]
            if versions:
                records = [version_directory.read_record(version) for version in versions]
                rows[recipe.name] = Row(recipe, records, _latency(versions[0], dataset.test.images[:1]))
                text = table([rows[recipe.name] for recipe in recipes if recipe.name in rows])
                write_whole(models / "catalogue.md", text.encode())
    return text


def table(rows: list[Row]) -> str:
    """Formats the rows as a Markdown table."""
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
    """Returns the version directory of one run. A missing version is made if `run` is set; otherwise the result is None."""
    teacher = find_teacher(recipe)
    found = version_directory.find(
        directory, fingerprint(recipe, *recipe.split(dataset, seed), seed, recipe.epochs, teacher)
    )
    if found or not run:
        return found
    # This repository compares recipes and serves nobody: a version may replace one that accepts more.
    return pipeline.run(recipe, dataset, seed, recipe.epochs, directory, replace=True, teacher=teacher)


def _latency(version: Path, image: np.ndarray) -> float:
    exported = Exported(version / "model.onnx", threads=1)  # the service also uses one thread per run
    seconds = []
    for _ in range(300):
        start = time.thread_time()
        exported.answers(image)
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds)
