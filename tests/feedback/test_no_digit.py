import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.client import NO_DIGIT, Decision, DigitClient
from serving.client import truths as client_truths
from serving.feedback import capture as capture_module
from serving.feedback.accuracy import AccuracyCollector
from serving.feedback.truth import TruthCounter
from serving.inference.model import open_model
from serving.telemetry.metrics import Metrics
from tests.support.calls import TIMEOUT
from tests.support.captured_store import rows
from tests.support.metrics import value
from tests.support.model_files import SPECK, publish_whole
from tests.support.servers import StartServer
from tests.support.truths import KEY, issue, keyed


@pytest.mark.parametrize(
    ("decision", "true", "outcome", "no_digit_outcome", "confused"),
    [
        (Decision.ACCEPT, "x", "wrong", "accepted", ("no_digit", "7")),
        (Decision.REJECT_LOW_CONFIDENCE, "x", "wrong", "rejected", ("no_digit", "7")),
        (Decision.REJECT_NO_DIGIT, "x", "right", "refused", ("no_digit", "no_digit")),
        (Decision.REJECT_NO_DIGIT, "7", "wrong", "digit_refused", ("7", "no_digit")),
        (Decision.ACCEPT, "7", "right", None, ("7", "7")),
    ],
)
async def test_both_errors_about_what_is_no_digit_are_counted(
    metrics: Metrics, decision: Decision, true: str, outcome: str, no_digit_outcome: str | None, confused: tuple[str, str]
) -> None:
    ids = RecognitionIds([KEY])
    answer = ids.issue(Recognized("digits", "1", False, bytes([7]), bytes([decision]), [False], [0.9]))
    assert await TruthCounter(ids, lambda *_: True, metrics).report([keyed(answer, 0, true)]) == 1
    registry = metrics.registry
    assert (
        value(
            registry,
            "digits_truth_total",
            unit="digit",
            decision=decision.name.lower().removeprefix("reject_"),
            outcome=outcome,
        )
        == 1
    )
    assert value(registry, "digits_no_digit_truth_total") == (no_digit_outcome is not None)
    if no_digit_outcome:
        assert value(registry, "digits_no_digit_truth_total", unit="digit", outcome=no_digit_outcome) == 1
    assert value(registry, "digits_confusion_total", true=confused[0], predicted=confused[1]) == 1
    calibrated = decision is not Decision.REJECT_NO_DIGIT
    assert value(registry, "digits_truth_confidence_count") == calibrated, "the confidence of no digit means nothing"


@pytest.mark.parametrize(
    ("decision", "true", "outcome", "no_digit_outcome"),
    [
        (Decision.ACCEPT, "7x4", "wrong", "accepted"),
        (Decision.REJECT_NO_DIGIT, "7x4", "right", "refused"),
        (Decision.REJECT_NO_DIGIT, "xxx", "right", "refused"),
        (Decision.REJECT_NO_DIGIT, "714", "wrong", "digit_refused"),
    ],
)
async def test_a_field_with_an_image_of_no_digit_is_counted_by_its_decision(
    metrics: Metrics, decision: Decision, true: str, outcome: str, no_digit_outcome: str
) -> None:
    ids = RecognitionIds([KEY])
    answer = ids.issue(Recognized("digits", "1", True, bytes([7, 1, 4]), bytes([decision]), [False], [0.9]))
    assert await TruthCounter(ids, lambda *_: True, metrics).report([keyed(answer, 0, true)]) == 1
    registry = metrics.registry
    assert value(registry, "digits_truth_total", unit="field", outcome=outcome) == 1
    assert value(registry, "digits_no_digit_truth_total", unit="field", outcome=no_digit_outcome) == 1
    # Which image of a refused field was taken for no digit is not known.
    assert value(registry, "digits_confusion_total") == (3 if decision is Decision.ACCEPT else 0)


async def test_an_audit_that_finds_no_digit_raises_the_error_among_the_accepted(
    truths: TruthCounter, ids: RecognitionIds, metrics: Metrics
) -> None:
    await truths.report([keyed(issue(ids, audited=True), 0, true, "audit") for true in ("7", "7", "x", "7")])
    accepted = {"source": "audit", "decision": "accept"}
    assert value(metrics.registry, "digits_truth_total", **accepted, outcome="wrong") == 1
    error = {
        sample.labels["bound"]: sample.value
        for metric in AccuracyCollector(metrics.registry).collect()
        for sample in metric.samples
        if sample.name == "digits_accepted_error_ratio"
    }
    assert error["estimate"] == 0.25


async def test_what_is_no_digit_is_captured_with_the_truth_that_it_is_none(
    start_server: StartServer, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "_IMAGE_TIMEOUT_SECONDS", TIMEOUT)  # however slow the disk is
    monkeypatch.setattr(capture_module, "_TRUTH_TIMEOUT_SECONDS", TIMEOUT)
    file = tmp_path / "captured.db"
    server = await start_server(open_model(publish_whole(tmp_path, 1).read_bytes(), "1"), capture=f"sqlite:///{file}")
    with DigitClient(f"127.0.0.1:{server.grpc_port}") as client:
        many = await asyncio.to_thread(client.recognize_batch, np.stack([images[0], SPECK, images[1], SPECK]))
        field = await asyncio.to_thread(client.read_field, np.stack([images[0], SPECK, images[1]]))
        keyed: list[client_truths.Truth] = [(many[1], NO_DIGIT), (many[3], 1), (field, f"7{NO_DIGIT}7")]
        assert await asyncio.to_thread(client.report_truth, keyed, "keying") == 3
    nonces = [RecognitionIds().parse(answer.recognition_id).nonce.hex() for answer in (many[0], field)]
    assert [one.captured for one in many] == [False, True, False, True]
    assert field.captured
    assert rows(file, "SELECT answer, place, field_length, decision FROM captured_images ORDER BY number") == [
        *((nonces[0], place, 0, "no_digit") for place in (1, 3)),
        *((nonces[1], place, 3, "no_digit") for place in range(3)),
    ]
    assert rows(file, "SELECT answer, place, value FROM captured_truths ORDER BY number") == [
        (nonces[0], 1, "x"),
        (nonces[0], 3, "1"),
        (nonces[1], 0, "7x7"),
    ]
    registry = server.metrics.registry
    assert value(registry, "digits_no_digit_truth_total", unit="digit", outcome="refused") == 1
    assert value(registry, "digits_no_digit_truth_total", unit="digit", outcome="digit_refused") == 1
    assert value(registry, "digits_no_digit_truth_total", unit="field", outcome="refused") == 1
