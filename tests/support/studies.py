"""Runs studies on a data set of a test."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.dataset import Dataset

if TYPE_CHECKING:
    from training.studies.workbench import Workbench


def workbench(dataset: Dataset, out: Path, **settings: Any) -> "Workbench":
    from training.studies.workbench import Workbench

    return Workbench(lambda: dataset, out, **settings)


def study(name: str, bench: "Workbench") -> tuple[str, list[dict[str, str]]]:
    """Runs a study, checks that its pictures are PNG files, and returns its finding and the rows of its table."""
    from training.studies.study import STUDIES

    line = STUDIES[name].function(bench)
    pictures = [path for path in bench.written if path.suffix == ".png"]
    assert pictures
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
    return line, rows(bench.out / f"{name}.csv")


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
