from collections.abc import Callable
from functools import partial
from importlib import metadata

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving import build_info
from serving.telemetry.histograms import BulkHistogram, BulkSummary
from serving.telemetry.metrics import Metrics
from tests.support.metrics import value


def test_the_build_shows_with_version_commit_and_onnx_runtime() -> None:
    labels = {"commit": build_info.commit(), "onnxruntime": metadata.version("onnxruntime")}
    assert value(Metrics().registry, "digits_build_info", version=build_info.version(), **labels) == 1


@pytest.mark.parametrize("count", [1, 7, 14])
@pytest.mark.parametrize("kind", [partial(BulkHistogram, buckets=(0.25, 0.5, 1)), BulkSummary])
def test_an_array_counts_as_its_values_do_one_by_one(kind: Callable[..., BulkHistogram | BulkSummary], count: int) -> None:
    registry = CollectorRegistry()
    bulk, single = (kind(name, name, registry=registry) for name in ("bulk", "single"))
    edges_and_between = [0, 0.25, 0.3, 0.5, 0.75, 1, 7]
    values = np.array(edges_and_between * 2, np.float32)[:count]
    bulk.observe_all(values)
    for one in values.tolist():
        single.observe(one)
    counts = {
        metric.name: [(sample.name.removeprefix(metric.name), sample.labels, sample.value) for sample in metric.samples]
        for metric in registry.collect()
    }
    assert counts["bulk"] == counts["single"]
