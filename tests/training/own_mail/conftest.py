"""Fixtures of certificates for own mail: a version, and labelled mail."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.repository.versions import ModelVersion
from tests.support.drawings import draw_many

Images = NDArray[np.uint8]


@pytest.fixture
def version(bundled: ModelVersion, tmp_path: Path) -> Path:
    """A version to certify, in a repository of its own."""
    return Path(shutil.copytree(bundled.path.parent, tmp_path / "models" / "digits" / "1"))


@pytest.fixture(scope="session")
def mail() -> tuple[Images, Images]:
    """Drawn digits in random order, through which other digits shine faintly: 3,000 images, and their labels."""
    images, labels = draw_many(3000, seed=5)
    random = np.random.default_rng(0)
    order, behind = random.permutation(3000), random.permutation(3000)
    shining = images[order] + random.uniform(0, 0.25, (3000, 1, 1)) * images[behind]
    return np.minimum(shining, 255).astype(np.uint8), labels[order]
