"""All recipes, several seeds each, beside what their sources claim: one table."""

import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training import pipeline, versions
from training.dataset import Dataset
from training.fit import fingerprint
from training.recipes import Recipe
from training.verify import Exported


@dataclass(frozen=True)
class Row:
    """What the runs of one recipe came to.

    Attributes:
        recipe: the recipe.
        records: the run record of each seed.
        latency: seconds that ONNX Runtime takes over one image, median.
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


def catalogue(recipes: Iterable[Recipe], dataset: Dataset, seeds: int, models: Path) -> str:
    """Runs every recipe with the seeds 0 to `seeds` - 1, and tells what came of it.

    `models` becomes a model repository with one model a recipe, and holds the table as `catalogue.md`. A run whose
    version is there already, of the same recipe, seed, epochs and data, is not made again; one that was cut off goes on.

    Returns:
        The table, as Markdown.
    """
    rows = []
    for recipe in recipes:
        versions = [_version(recipe, dataset, seed, models / recipe.name) for seed in range(seeds)]
        records = [json.loads((version / "run.json").read_text()) for version in versions]
        rows.append(Row(recipe, records, _latency(Exported(versions[0] / "model.onnx"), dataset.test.images[:1])))
    text = table(rows)
    (models / "catalogue.md").write_text(text)
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


def _version(recipe: Recipe, dataset: Dataset, seed: int, directory: Path) -> Path:
    """The version directory of one run, which is made unless it is there."""
    found = versions.find(directory, fingerprint(recipe, *pipeline.split(recipe, dataset, seed), seed, recipe.epochs))
    if found is None:
        return pipeline.run(recipe, dataset, seed, recipe.epochs, directory)
    print(f"found      {recipe.name}, seed {seed}: {found}", flush=True)
    return found


def _latency(exported: Exported, image: np.ndarray, runs: int = 300) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        exported.answers(image, 1)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
