import pytest
from prometheus_client import Metric

from serving.answers.recognition_id import RecognitionIds
from serving.feedback.accuracy import AccuracyCollector, wilson_interval
from serving.feedback.truth import TruthCounter
from serving.telemetry.metrics import Metrics
from tests.support.truths import issue, keyed
from training import evaluate


def test_the_wilson_interval_equals_that_of_r() -> None:
    # prop.test(c(0, 3, 50), c(20, 60, 100), correct = FALSE) of R, one proportion at a time
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(3, 60) == pytest.approx((0.0171, 0.1370), abs=1e-4)
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(7, 300) == pytest.approx(evaluate.wilson_interval(7, 300)), "training and serving agree"


def derived(metrics: Metrics) -> dict[str, Metric]:
    return {metric.name: metric for metric in AccuracyCollector(metrics.registry).collect()}


async def test_accuracy_and_the_audited_error_follow_from_the_counts(
    truths: TruthCounter, ids: RecognitionIds, metrics: Metrics
) -> None:
    metrics.truth.labels("digits", "1", "digit", "audit", "accept", "right")  # created, but never counted
    assert not derived(metrics)["digits_accuracy_ratio"].samples, "without truth there is no accuracy"
    await truths.report([keyed(issue(ids), 0, value) for value in "7772"])
    audited = [issue(ids, audited=True) for _ in range(20)]
    await truths.report([keyed(answer, 0, "1" if number < 3 else "7", "audit") for number, answer in enumerate(audited)])
    found = derived(metrics)
    accuracy = {sample.labels["source"]: sample.value for sample in found["digits_accuracy_ratio"].samples}
    assert accuracy == {"keying": 0.75, "audit": 0.85}
    error = {sample.labels["bound"]: sample.value for sample in found["digits_accepted_error_ratio"].samples}
    assert error["estimate"] == 0.15
    assert (error["lower"], error["upper"]) == wilson_interval(3, 20)
