"""One stage for all cases: those with the same front and flags share a service."""

from collections.abc import Iterator

import pytest

from tests.robustness.stage import Stage, stage


@pytest.fixture(scope="session")
def one_stage() -> Iterator[Stage]:
    with stage() as one:
        yield one
