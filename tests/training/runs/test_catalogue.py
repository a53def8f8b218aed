from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.training_runs import small
from training.dataset import Dataset, Examples

Images = NDArray[np.uint8]


@pytest.mark.slow
def test_a_catalogue_makes_each_run_once_and_tabulates_the_results(
    some: Examples, drawings: tuple[Images, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import catalogue, pipeline
    from training.recipes import Recipe

    made = []
    run = pipeline.run

    def recorded(recipe: Recipe, dataset: Dataset, seed: int, epochs: int, models: Path, **named: Any) -> Path:
        made.append(seed)
        return run(recipe, dataset, seed, epochs, models, **named)

    monkeypatch.setattr(pipeline, "run", recorded)
    dataset = Dataset(some, Examples(*drawings), "none: drawn")
    recipes = [small("dense512", epochs=4), small("convnet", epochs=2)]
    catalogue.catalogue(recipes, ["convnet"], dataset, 1, tmp_path)
    text = catalogue.catalogue(recipes, ["dense512"], dataset, 1, tmp_path)
    assert made == [0, 0]
    assert "`convnet`" in text, "existing rows stay in the table"
    text = catalogue.catalogue(recipes, ["dense512", "convnet"], dataset, 2, tmp_path)
    assert made == [0, 0, 1, 1], "existing versions are reused"
    assert (tmp_path / "catalogue.md").read_text() == text
    rows = [[cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [row[0] for row in rows[2:]] == ["dense512", "convnet"]
    dense = dict(zip(rows[0], rows[2], strict=True))
    low, high = map(float, dense["lowest to highest"].split(" to "))
    assert 0.5 < low <= float(dense["accuracy, mean"]) <= high <= 1
    assert (dense["claimed"], dense["expected"], dense["parameters"]) == ("0.9817", "0.9787 to 0.9847", "407,050")
    assert dense["in range"] == ("yes" if 0.9787 <= float(dense["accuracy, mean"]) <= 0.9847 else "no")
