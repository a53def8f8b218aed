import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.classifier import CONFIDENCE, DIGIT, INKED, LOGITS, PROBABILITIES, Classifier
from serving.inference.model import Model
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.conftest import value

Images = NDArray[np.uint8]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


class Broken:
    """A network that says no number of its first image."""

    def __init__(self, model: Model):
        self._model = model

    def infer(self, images: Images) -> NDArray[np.float32]:
        said = self._model.infer(images)
        said[0] = np.nan
        return said


def test_a_row_says_what_the_model_says_and_what_it_means(model: Model, metrics: Metrics, images: Images) -> None:
    rows = Classifier(model, VersionMetrics(metrics, "digits", "1")).infer(images[:20])
    said = model.infer(images[:20])
    assert (np.hstack([rows[:, LOGITS], rows[:, PROBABILITIES]]) == said).all()
    assert (rows[:, DIGIT] == said[:, 10:].argmax(axis=1)).all()
    assert (rows[:, CONFIDENCE] == said[:, 10:].max(axis=1)).all()
    assert (rows[:, INKED] == 1).all()


def test_blank_images_and_those_without_a_number_are_not_counted(model: Model, metrics: Metrics, images: Images) -> None:
    some = images[:10].copy()
    some[3:5] = 0
    rows = Classifier(Broken(model), VersionMetrics(metrics, "digits", "1")).infer(some)
    assert rows[:, INKED].tolist() == [1, 1, 1, 0, 0, 1, 1, 1, 1, 1]
    assert not np.isfinite(rows[0, CONFIDENCE])
    assert value(metrics.registry, "digits_predictions_total") == 7
    assert value(metrics.registry, "digits_confidence_count") == 7


def test_what_several_threads_read_is_all_counted(model: Model, metrics: Metrics, images: Images) -> None:
    reader = Classifier(model, VersionMetrics(metrics, "digits", "1"))

    def read() -> None:
        for start in range(0, 64 * 4, 4):
            reader.infer(images[start % 60 : start % 60 + 4])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics.registry, "digits_predictions_total") == 1024
    assert value(metrics.registry, "digits_ink_ratio_count") == 1024
