"""Fixtures of tracing: the environment, and a collector."""

import os
from collections.abc import Iterator

import pytest

from tests.support.collector import Collector, running_collector


@pytest.fixture
def environment() -> Iterator[pytest.MonkeyPatch]:
    """Removes OpenTelemetry's variables, so that each test sets its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("OTEL_"):
                patch.delenv(name)
        yield patch


@pytest.fixture
def collector(environment: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Runs a collector, and points the environment at it."""
    with running_collector() as running:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.endpoint)
        yield running
