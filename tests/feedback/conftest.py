import pytest

from serving.answers.recognition_id import RecognitionIds
from serving.feedback.truth import TruthCounter
from serving.telemetry.metrics import Metrics
from tests.support.truths import KEY


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def ids() -> RecognitionIds:
    return RecognitionIds([KEY])


@pytest.fixture
def truths(ids: RecognitionIds, metrics: Metrics) -> TruthCounter:
    return TruthCounter(ids, lambda *_: False, metrics)
