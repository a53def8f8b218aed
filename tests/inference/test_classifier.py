import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import InferenceFailed
from serving.inference.batcher import Batcher
from serving.inference.classifier import (
    CONFIDENCE,
    DIGIT,
    LOGITS,
    ONE_DIGIT,
    PROBABILITIES,
    SHOWS,
    WHOLE,
    Classifier,
    Network,
)
from serving.telemetry.logs import trace_ids
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import value

Images = NDArray[np.uint8]


class FirstIsNan:
    """A network that returns NaN for the first image of each run."""

    def __init__(self, model: Classifier):
        self._model = model

    def classify(self, images: Images) -> NDArray[np.float32]:
        rows = self._model.classify(images)
        rows[0, :DIGIT] = np.nan
        rows[0, CONFIDENCE] = np.nan
        return rows


class FourAtOnce:
    """A network whose runs end four at a time, so that four threads count their predictions together.

    Attributes:
        threads: the threads that ran it.
    """

    def __init__(self, model: Classifier):
        self._model = model
        self._four = threading.Barrier(4)
        self.threads: set[threading.Thread] = set()

    def classify(self, images: Images) -> NDArray[np.float32]:
        self.threads.add(threading.current_thread())
        rows = self._model.classify(images)
        self._four.wait(TIMEOUT)
        return rows


@pytest.fixture
async def start_on(metrics: Metrics) -> AsyncIterator[Callable[[Network], Batcher]]:
    """Starts batchers with four threads on any network, and closes them after the test."""
    batchers = []

    def start_batcher(network: Network) -> Batcher:
        limits = {"instances": 4, "max_batch_size": 64, "max_queue_size": 10_000}
        batchers.append(Batcher(network, VersionMetrics(metrics, "digits", "1"), **limits))
        return batchers[-1]

    yield start_batcher
    for batcher in batchers:
        await batcher.close(TIMEOUT)


def test_a_row_holds_the_model_outputs_and_the_answer_for_its_image(model: Classifier, images: Images) -> None:
    rows = model.classify(images[:20])
    outputs = model.infer(images[:20])
    assert (np.hstack([rows[:, LOGITS], rows[:, PROBABILITIES], rows[:, [WHOLE]]]) == outputs).all()
    assert (rows[:, DIGIT] == outputs[:, PROBABILITIES].argmax(axis=1)).all()
    assert (rows[:, CONFIDENCE] == outputs[:, PROBABILITIES].max(axis=1)).all()
    assert (rows[:, SHOWS] == ONE_DIGIT).all()


async def test_blank_images_and_nan_are_not_counted_as_predictions(
    start_on: Callable[[Network], Batcher], model: Classifier, metrics: Metrics, images: Images
) -> None:
    with_blanks = images[:10].copy()
    with_blanks[3:5] = 0
    assert model.classify(with_blanks)[:, SHOWS].tolist() == [2, 2, 2, 0, 0, 2, 2, 2, 2, 2]
    with pytest.raises(InferenceFailed, match="NaN or infinity"):
        await start_on(FirstIsNan(model)).submit(with_blanks.tobytes())
    assert value(metrics.registry, "digits_predictions_total") == 7
    assert value(metrics.registry, "digits_confidence_count") == 7


async def test_predictions_from_several_threads_are_all_counted(
    start_on: Callable[[Network], Batcher], model: Classifier, metrics: Metrics, images: Images
) -> None:
    network = FourAtOnce(model)
    batcher = start_on(network)
    parts = [images[start % 60 : start % 60 + 16] for start in range(0, 16 * 64, 16)]
    answers = await asyncio.gather(*(batcher.submit(part.tobytes()) for part in parts))
    assert sum(len(answer.rows) for answer in answers) == 1024
    assert len(network.threads) == 4
    assert value(metrics.registry, "digits_predictions_total") == 1024
    assert value(metrics.registry, "digits_confidence_count") == 1024
    assert value(metrics.registry, "digits_ink_ratio_count") == 1024


async def test_log_lines_of_a_batcher_have_no_ids_of_the_call_that_loads_it(
    start_on: Callable[[Network], Batcher], model: Classifier, images: Images
) -> None:
    seen: list[dict[str, str]] = []

    class Failing:
        def classify(self, images: Images) -> NDArray[np.float32]:
            raise RuntimeError("no")

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(dict(trace_ids.get()))

    def load() -> Batcher:
        trace_ids.set({"trace_id": "1" * 32, "span_id": "2" * 16})
        return start_on(Failing())

    recorder = Recorder()
    logging.getLogger("serving.inference.batch").addHandler(recorder)
    try:
        with pytest.raises(InferenceFailed):
            await copy_context().run(load).submit(images[:1].tobytes())
    finally:
        logging.getLogger("serving.inference.batch").removeHandler(recorder)
    assert seen == [{}]
