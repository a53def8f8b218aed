import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.decision import Decision
from serving.answers.recognition_id import RecognitionIds
from serving.call import Call
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    RateLimited,
    RequestError,
    UnknownModel,
)
from serving.imaging import crop
from serving.imaging.crop import frame_crop
from serving.inference.batcher import Batcher
from serving.inference.classifier import BLANK, ONE_DIGIT, PROBABILITIES, Classifier
from serving.recognition.policy import Policy
from serving.recognition.reading import Images, ReadOptions
from serving.recognition.recognizer import Recognizer
from serving.repository.catalog import Catalog, Loaded, ServedModel
from serving.repository.versions import ModelVersion
from serving.samples.photograph import photograph
from serving.security.rate_limits import RateLimits
from serving.security.token_file import ClientEntry
from serving.security.tokens import Client
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import value
from tests.support.models import GatedModel

ONE = Images(b"\x80" * 784)
BROKEN = b"no picture"

Start = Callable[..., Recognizer]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def catalog() -> Catalog:
    return Catalog("digits")


@pytest.fixture
async def start(model: Classifier, bundled: ModelVersion, metrics: Metrics, catalog: Catalog) -> AsyncIterator[Start]:
    """Starts recognizers on one model, with requests of at most 10 images; after the test they close."""
    closing: list[Callable[[float], Awaitable[object]]] = []

    def start_recognizer(model: Classifier = model, max_queue_size: int = 100) -> Recognizer:
        version = VersionMetrics(metrics, "digits", model.version)
        batcher = Batcher(model, version, instances=1, max_batch_size=32, max_queue_size=max_queue_size)
        stable = Loaded("digits", model.version, bundled, model, batcher, version)
        catalog.models["digits"] = ServedModel("digits", roles={"stable": stable})
        policy = Policy(0.01, 0.05, {}, RecognitionIds(), 0.0, None)
        recognizer = Recognizer(catalog, policy, metrics, max_images_per_request=10, max_queue_size=max_queue_size)
        closing.extend((recognizer.close, batcher.close))
        return recognizer

    yield start_recognizer
    for close in closing:
        await close(TIMEOUT)


def limited_client() -> Client:
    """A client whose first image uses up its rate limit for a thousand seconds."""
    entry = ClientEntry(token_sha256="0" * 64, roles=frozenset({"recognize"}), images_per_second=0.001)
    return Client("sorter-7", entry, RateLimits(None))


@pytest.mark.parametrize(
    ("images", "target", "reason"),
    [
        (Images(), 0.0, "images is 0 bytes, expected a multiple of 784"),
        (Images(bytes(785)), 0.0, "images is 785 bytes, expected a multiple of 784"),
        (Images(bytes(11 * 784)), 0.0, "images holds 11 images, this server takes 10 a call"),
        (Images(b"", [b""] * 11), 0.0, "crops holds 11 images, this server takes 10 a call"),
        (Images(bytes(784), [b""]), 0.0, "there are images and crops: expected one of the two"),
        (ONE, 1.0, "target_error_rate is 1.0, expected a share below 1, or 0"),
        (ONE, -0.1, "target_error_rate is -0.1, expected a share below 1, or 0"),
        (ONE, math.nan, "target_error_rate is nan, expected a share below 1, or 0"),
    ],
)
async def test_an_invalid_request_is_refused_before_its_model_is_looked_up(
    start: Start, images: Images, target: float, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await start().recognize(images, ReadOptions(model="letters", target_error_rate=target), Call())
    assert str(refusal.value).startswith(reason)


async def test_a_refused_request_is_not_charged_to_its_client(start: Start) -> None:
    recognizer, call = start(), Call(client=limited_client())
    with pytest.raises(InvalidRequest):
        await recognizer.recognize(Images(bytes(785)), ReadOptions(), call)
    with pytest.raises(UnknownModel):
        await recognizer.recognize(ONE, ReadOptions(model="letters"), call)
    assert await recognizer.recognize(ONE, ReadOptions(), call)
    with pytest.raises(RateLimited):
        await recognizer.recognize(ONE, ReadOptions(), call)


async def test_a_request_that_the_queue_sheds_is_refunded_to_its_client(
    start: Start, gated: GatedModel, metrics: Metrics
) -> None:
    recognizer, call = start(gated, max_queue_size=1), Call(client=limited_client())
    running = asyncio.create_task(recognizer.recognize(ONE, ReadOptions(), Call()))
    await gated.run_starts()
    waiting = asyncio.create_task(recognizer.recognize(ONE, ReadOptions(), Call()))
    await asyncio.sleep(0)
    for _ in range(3):
        with pytest.raises(QueueFull):
            await recognizer.recognize(ONE, ReadOptions(), call)
    gated.open()
    await asyncio.gather(running, waiting)
    assert await recognizer.recognize(ONE, ReadOptions(), call)


async def test_an_answer_has_the_output_of_the_model_and_a_decision_each(
    start: Start, model: Classifier, images: NDArray[np.uint8]
) -> None:
    call = Call()
    reading, verdict = await start().recognize(Images(images[:9].tobytes() + bytes(784)), ReadOptions(), call)
    expected = model.infer(np.concatenate([images[:9], np.zeros((1, 28, 28), np.uint8)]))
    np.testing.assert_allclose(reading.logits, expected[:, :10], atol=1e-4)
    np.testing.assert_allclose(reading.probabilities, expected[:, PROBABILITIES], atol=1e-5)
    assert reading.digits.tolist() == expected[:, PROBABILITIES].argmax(axis=1).tolist()
    assert reading.shows.tolist() == [ONE_DIGIT] * 9 + [BLANK]
    assert verdict.decisions[-1] == Decision.REJECT_INVALID_IMAGE
    assert (call.model, call.version, call.images) == ("digits", model.version, 10)


async def test_broken_crops_of_a_partial_request_are_rejected_alone(start: Start, images: NDArray[np.uint8]) -> None:
    crops = [photograph(image, np.random.default_rng(1)) for image in images[:2]]
    reading, verdict = await start().recognize(Images(b"", [crops[0], BROKEN, crops[1]]), ReadOptions(partial=True), Call())
    assert list(reading.errors) == [1]
    assert reading.pixels == frame_crop(crops[0]).image.tobytes() + bytes(784) + frame_crop(crops[1]).image.tobytes()
    assert [decision == Decision.REJECT_INVALID_IMAGE for decision in verdict.decisions] == [False, True, False]


async def test_a_crop_is_read_by_the_version_that_takes_over_meanwhile(
    start: Start, catalog: Catalog, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    framing, go_on = threading.Event(), threading.Event()

    def frame_slowly(content: bytes) -> object:
        framing.set()
        assert go_on.wait(TIMEOUT)
        return frame_crop(content)

    monkeypatch.setattr(crop, "frame_crop", frame_slowly)
    recognizer = start()
    old = catalog.route()
    crops = [photograph(images[0], np.random.default_rng(1))]
    answering = asyncio.create_task(recognizer.recognize(Images(b"", crops), ReadOptions(), Call()))
    assert await asyncio.to_thread(framing.wait, TIMEOUT)
    start()  # puts another version into the catalog
    await old.batcher.close(TIMEOUT)
    go_on.set()
    reading, _ = await answering
    assert reading.loaded is catalog.route()


@pytest.mark.parametrize(("left", "expected"), [({"digits": ServedModel("digits")}, ModelNotReady), ({}, UnknownModel)])
async def test_a_crop_is_refunded_and_not_counted_if_its_model_goes_meanwhile(
    start: Start,
    catalog: Catalog,
    metrics: Metrics,
    left: dict[str, ServedModel],
    expected: type[RequestError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recognizer, call = start(), Call(client=limited_client())
    served = catalog.models

    def frame_and_unload(content: bytes) -> object:
        catalog.models = left
        return frame_crop(content)

    monkeypatch.setattr(crop, "frame_crop", frame_and_unload)
    crops = [photograph(np.full((28, 28), 200, np.uint8), np.random.default_rng(1))]
    with pytest.raises(expected):
        await recognizer.recognize(Images(b"", crops), ReadOptions(batch=True), call)
    catalog.models = served
    assert await recognizer.recognize(ONE, ReadOptions(), call)
    assert value(metrics.registry, "digits_batch_images_total") == 0


async def test_images_over_the_rate_limit_are_not_counted_as_batch(start: Start, metrics: Metrics) -> None:
    recognizer, call = start(), Call(client=limited_client())
    assert await recognizer.recognize(ONE, ReadOptions(batch=True), call)
    with pytest.raises(RateLimited):
        await recognizer.recognize(ONE, ReadOptions(batch=True), call)
    assert value(metrics.registry, "digits_batch_images_total") == 1


@pytest.mark.parametrize(("count", "reason"), [(1, "crop: neither a PNG"), (2, "crop 0 can't be read: neither a PNG")])
async def test_a_broken_crop_fails_a_request_that_is_not_partial(start: Start, count: int, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await start().recognize(Images(b"", [BROKEN] * count), ReadOptions(), Call())
    assert str(refusal.value).startswith(reason)


async def test_a_request_past_its_own_timeout_ends_and_leaves_the_queue(
    start: Start, gated: GatedModel, metrics: Metrics
) -> None:
    recognizer, call = start(gated), Call()
    running = asyncio.create_task(recognizer.recognize(ONE, ReadOptions(), Call()))
    await gated.run_starts()
    with pytest.raises(DeadlineExceeded, match="the request's timeout passed before its answer was ready"):
        await recognizer.recognize(ONE, ReadOptions(timeout_seconds=0.05), call)
    assert call.deadline <= time.monotonic(), "the timeout is the deadline of the call, too"
    assert value(metrics.registry, "digits_queue_length_images") == 0
    gated.open()
    await running
    assert len(gated.batches) == 1


async def test_a_long_timeout_does_not_extend_the_deadline_of_the_call(start: Start) -> None:
    call = Call(deadline=time.monotonic() + TIMEOUT)
    deadline = call.deadline
    assert await start().recognize(ONE, ReadOptions(timeout_seconds=1e6), call)
    assert call.deadline == deadline


async def test_a_field_in_an_unknown_lexicon_is_refused_before_it_is_read(start: Start, metrics: Metrics) -> None:
    with pytest.raises(InvalidRequest, match="there is no lexicon 'us', this server has: none"):
        await start().read_field(ONE, ReadOptions(lexicon="us"), Call())
    assert value(metrics.registry, "digits_batch_size_images_count") == 0
