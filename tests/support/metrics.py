"""Metrics of a server in this process: the value of one now, and waiting until it has a value."""

import asyncio

from prometheus_client import CollectorRegistry

from tests.support.calls import TIMEOUT


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """Returns the sum of a metric's samples with these labels; 0 without such a sample."""
    samples = [sample for metric in registry.collect() for sample in metric.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


async def until(registry: CollectorRegistry, name: str, expected: float, **labels: str) -> None:
    """Waits until `value` is `expected`. Raises TimeoutError after TIMEOUT seconds."""
    async with asyncio.timeout(TIMEOUT):
        while value(registry, name, **labels) != expected:
            await asyncio.sleep(0.001)
