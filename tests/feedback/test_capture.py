import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.decision import Decision
from serving.answers.recognition_id import Recognized
from serving.errors import TruthNotStored
from serving.feedback import capture as capture_module
from serving.feedback.capture import Capture
from serving.feedback.capture_records import CapturedTruth
from serving.feedback.capture_store import Store
from serving.telemetry.metrics import Metrics
from tests.support.calls import TIMEOUT
from tests.support.captured_store import captured_image as image
from tests.support.captured_store import rows
from tests.support.metrics import value

Images = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets answers wait for the disk as long as it takes."""
    monkeypatch.setattr(capture_module, "_IMAGE_TIMEOUT_SECONDS", TIMEOUT)
    monkeypatch.setattr(capture_module, "_TRUTH_TIMEOUT_SECONDS", TIMEOUT)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captured.db"


class StalledStore(Store):
    """A real store that adds rows only once `go` is set, as on a stalled disk."""

    def __init__(self, url: str):
        super().__init__(url, 30, 1000)
        self.adding, self.go = threading.Event(), threading.Event()

    def add(self, images: object, truths: object) -> None:
        self.adding.set()
        assert self.go.wait(TIMEOUT)
        super().add(images, truths)  # type: ignore[arg-type]


WHOLE = np.ones(1, np.float32)
REJECTED = bytes([Decision.REJECT_LOW_CONFIDENCE])


def answered(count: int = 1) -> Recognized:
    """Returns an answer about `count` images, all rejected."""
    return Recognized("digits", "1", False, bytes([7]) * count, REJECTED * count, [False] * count, [0.5] * count)


def truth(answer: str = "0" * 16) -> CapturedTruth:
    return CapturedTruth(answer, 0, "keying", "7")


@pytest.fixture
async def capture(file: Path) -> AsyncIterator[Capture]:
    started = Capture(Store(f"sqlite:///{file}", 30, 1000), Metrics(), 1000)
    await started.start()
    yield started
    await started.close(TIMEOUT)


@pytest.fixture
def shown(images: Images) -> Images:
    return images[:1].reshape(1, 784)


async def test_an_answer_does_not_wait_for_a_stalled_disk(
    file: Path, shown: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_IMAGE_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(capture_module, "_TRUTH_TIMEOUT_SECONDS", 0.01)
    metrics, store = Metrics(), StalledStore(f"sqlite:///{file}")
    capture = Capture(store, metrics, max_waiting=3)
    await capture.start()
    assert not await capture.keep(answered(), shown, WHOLE, math.inf), "no row is on disk yet"
    assert await asyncio.to_thread(store.adding.wait, TIMEOUT)
    assert not await capture.keep(answered(), shown, WHOLE, math.inf)
    with pytest.raises(TruthNotStored):
        await capture.keep_truths([truth()])
    assert not await capture.keep(answered(), shown, WHOLE, math.inf), "three records wait already"
    with pytest.raises(TruthNotStored):
        await capture.keep_truths([truth()])
    assert value(metrics.registry, "digits_captured_total", record="image", outcome="skipped") == 1
    assert value(metrics.registry, "digits_captured_total", record="truth", outcome="skipped") == 1
    store.go.set()
    await capture.close(TIMEOUT)
    assert len(rows(file, "SELECT 1 FROM captured_images")) == 2, "stored, although late"
    assert value(metrics.registry, "digits_captured_total", outcome="stored") == 3


async def test_an_answer_with_a_near_deadline_does_not_wait_for_the_disk(file: Path, shown: Images) -> None:
    store = StalledStore(f"sqlite:///{file}")
    capture = Capture(store, Metrics(), 1000)
    await capture.start()
    async with asyncio.timeout(TIMEOUT / 2):  # it would wait twice as long otherwise
        assert not await capture.keep(answered(), shown, WHOLE, time.monotonic() + 0.05)
    store.go.set()
    await capture.close(TIMEOUT)


async def test_an_answer_does_not_wait_for_a_failing_database(
    file: Path, shown: Images, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = StalledStore(f"sqlite:///{file}")
    capture = Capture(store, Metrics(), 1000)
    with monkeypatch.context() as broken:
        broken.setattr(store, "add", lambda *_: 1 / 0)
        await capture.start()
        async with asyncio.timeout(TIMEOUT):
            while "capture fails" not in caplog.text:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(TIMEOUT / 2):  # it would wait twice as long otherwise
        assert not await capture.keep(answered(), shown, WHOLE, math.inf)
    store.go.set()
    await capture.close(TIMEOUT)
    assert len(rows(file, "SELECT 1 FROM captured_images")) == 1, "the image was stored all the same"


async def test_records_that_wait_at_shutdown_are_stored(
    file: Path, shown: Images, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_IMAGE_TIMEOUT_SECONDS", 0)
    monkeypatch.setattr(capture_module, "_TRANSACTION_SIZE", 7)
    for _ in range(100):
        await capture.keep(answered(), shown, WHOLE, math.inf)
    async with asyncio.timeout(TIMEOUT / 2):
        await capture.close(TIMEOUT)
    assert len(rows(file, "SELECT 1 FROM captured_images")) == 100


async def test_an_unexpected_error_costs_only_the_records_it_hits(
    shown: Images, capture: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as broken:
        broken.setattr(Store, "add", lambda *_: 1 / 0)
        assert not await capture.keep(answered(), shown, WHOLE, math.inf)
        assert not await capture.keep(answered(), shown, WHOLE, math.inf)
    await capture.keep_truths([truth()])
    assert await capture.keep(answered(), shown, WHOLE, math.inf)
    assert [record.event for record in caplog.records if hasattr(record, "event")] == [
        "capture_failing",
        "capture_recovered",
    ]
    assert "ZeroDivisionError" in caplog.text


async def test_an_answer_of_ten_thousand_images_is_captured_whole(file: Path, images: Images) -> None:
    capture = Capture(Store(f"sqlite:///{file}", 30, 100_000), Metrics(), 10_000)
    await capture.start()
    many = np.tile(images.reshape(-1, 784), (10, 1))
    assert await capture.keep(answered(10_000), many, np.ones(10_000, np.float32), math.inf)
    await capture.close(TIMEOUT)
    assert rows(file, "SELECT count(*), max(place) FROM captured_images") == [(10_000, 9_999)]


async def test_images_expire_even_if_no_more_are_captured(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "_RETENTION_INTERVAL_SECONDS", 0.05)
    store = Store(f"sqlite:///{file}", days=1e-5, max_images=10)
    store.add([image()], [])
    capture = Capture(store, Metrics(), 1000)
    await capture.start()
    async with asyncio.timeout(TIMEOUT):
        while rows(file, "SELECT 1 FROM captured_images"):
            await asyncio.sleep(0.05)
    await capture.close(TIMEOUT)
