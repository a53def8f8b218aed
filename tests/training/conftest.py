"""Fixtures of the training tests: a database of captured images, and an untrained network."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.captured_store import Store
from tests.support.networks import build

if TYPE_CHECKING:
    import keras


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty database of captured images."""
    return Store(tmp_path / "captured.db")


@pytest.fixture(scope="session")
def network() -> "keras.Sequential":
    """`flagship_small`, with weights of one seed."""
    import keras

    keras.utils.set_random_seed(1)
    return build("flagship_small")
