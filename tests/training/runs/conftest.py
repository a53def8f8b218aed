"""Fixtures of training runs."""

import pytest

from tests.support.drawings import draw_many
from training.dataset import Examples


@pytest.fixture(scope="session")
def some() -> Examples:
    return Examples(*draw_many(300, seed=2))
