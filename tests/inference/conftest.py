from collections.abc import AsyncIterator

import pytest

from serving.inference.batcher import Batcher
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.inference.requests import StartBatcher
from tests.support.calls import TIMEOUT
from tests.support.models import GatedModel


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def start(gated: GatedModel, metrics: Metrics) -> AsyncIterator[StartBatcher]:
    """Starts batchers on the gated model, with one runner by default. After the test the gate opens and they close."""
    batchers = []

    def start_batcher(**settings: float) -> Batcher:
        defaults = {"instances": 1, "max_batch_size": 32, "max_queue_size": 1000}
        batchers.append(Batcher(gated, VersionMetrics(metrics, "digits", "1"), **{**defaults, **settings}))  # type: ignore[arg-type]
        return batchers[-1]

    yield start_batcher
    gated.open()
    for batcher in batchers:
        await batcher.close(TIMEOUT)
