"""Fixtures of the studies: a workbench on drawn digits."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.studies import workbench
from training.dataset import Dataset

if TYPE_CHECKING:
    from training.studies.workbench import Workbench


@pytest.fixture
def bench(drawn: Dataset, tmp_path: Path) -> "Workbench":
    return workbench(drawn, tmp_path, epochs=2)
