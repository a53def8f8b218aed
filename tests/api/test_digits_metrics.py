import asyncio
import urllib.request

import numpy as np
from numpy.typing import NDArray

from serving.errors import request_errors
from serving.inference.classifier import Classifier
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT, refused
from tests.support.digit_calls import recognize, recognize_batch


async def test_rare_events_are_exported_from_0_so_that_the_first_is_an_increase(server: Server) -> None:
    samples = [sample for metric in server.metrics.registry.collect() for sample in metric.samples]
    reasons = {sample.labels["reason"] for sample in samples if sample.name == "digits_rejected_requests_total"}
    assert reasons == {error.reason for error in request_errors()} | {"cancelled"}
    truths = [sample.labels for sample in samples if sample.name == "digits_truth_total"]
    assert {(labels["unit"], labels["source"], labels["decision"], labels["outcome"]) for labels in truths} == {
        (unit, "audit", "accept", outcome) for unit in ("digit", "field") for outcome in ("right", "wrong")
    }


async def test_metrics_over_http_count_requests_and_predictions(
    stub: DigitServiceStub, server: Server, model: Classifier, images: NDArray[np.uint8]
) -> None:
    await recognize_batch(stub, images.tobytes())
    await refused(recognize(stub, b""))

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=TIMEOUT) as page:
            return str(page.read(), "utf-8")

    page = await asyncio.to_thread(scrape)
    counts = np.bincount(model.predict(images).argmax(axis=1), minlength=10)
    for digit, count in enumerate(counts):
        assert f'digits_predictions_total{{digit="{digit}",model="digits",version="{model.version}"}} {count:.1f}' in page
    assert 'digits_requests_total{code="INVALID_ARGUMENT",method="Recognize"} 1.0' in page
    assert 'digits_rejected_requests_total{reason="invalid"} 1.0' in page
    assert f'digits_confidence_count{{model="digits",version="{model.version}"}} {len(images):.1f}' in page
    assert "digits_in_flight_requests 0.0" in page
    assert f'model="digits",recipe="{model.metadata.recipe}",test_accuracy="{model.metadata.test_accuracy:.4f}"' in page
