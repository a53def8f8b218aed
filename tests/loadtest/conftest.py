"""Fixtures of the load test: a service to call."""

from collections.abc import Iterator

import pytest

from tests.support.service import Service, service


@pytest.fixture(scope="module")
def service_() -> Iterator[Service]:
    with service() as started:
        yield started


@pytest.fixture
def server_address(service_: Service) -> str:
    return service_.address
