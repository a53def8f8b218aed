import asyncio
import threading
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.client import Decision, DigitClient, Recognition
from serving.errors import InvalidRequest
from serving.feedback import truth as truth_module
from serving.feedback import turns
from serving.feedback.accuracy import wilson_interval
from serving.feedback.truth import Truth, TruthCounter
from serving.inference.classifier import Classifier
from serving.telemetry.metrics import Metrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import value
from tests.support.servers import StartServer
from tests.support.service import service as running
from tests.support.truths import KEY, issue, keyed

Images = NDArray[np.uint8]
OTHER = b"another key of 32 characters or so"
ACCEPT = Decision.ACCEPT


async def test_truth_is_counted_by_source_decision_and_outcome_once(
    truths: TruthCounter, ids: RecognitionIds, metrics: Metrics
) -> None:
    answer = issue(ids)
    assert await truths.report([Truth(answer, "keying", {0: "7", 1: "7"}), keyed(answer, 1, "1")]) == 2
    assert await truths.report([keyed(answer, 1, "7"), keyed(answer, 2, "4", "replay")]) == 1

    def counted(**labels: str) -> float:
        return value(metrics.registry, "digits_truth_total", model="digits", version="20261121", unit="digit", **labels)

    assert counted() == 3
    assert counted(source="keying", decision="accept", outcome="right") == 1
    assert counted(source="keying", decision="low_confidence", outcome="wrong") == 1, "the first report counts"
    assert counted(source="replay", decision="accept", outcome="right") == 1
    assert value(metrics.registry, "digits_confusion_total", source="keying", true="7", predicted="1") == 1
    assert value(metrics.registry, "digits_confusion_total", source="keying") == 2
    assert value(metrics.registry, "digits_confusion_total", source="replay") == 1
    assert value(metrics.registry, "digits_truth_confidence_count", source="keying", outcome="wrong") == 1
    assert value(metrics.registry, "digits_truth_confidence_sum", outcome="right") == pytest.approx(1.4, abs=1e-4)


@pytest.mark.parametrize(("digits", "aside"), [(10_000, False), (20_000, True)])
async def test_a_long_id_is_parsed_off_the_loop(
    truths: TruthCounter, ids: RecognitionIds, digits: int, aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def parse(text: str) -> Recognized:
        threads.append(threading.current_thread())
        return RecognitionIds([KEY]).parse(text)

    monkeypatch.setattr(ids, "parse", parse)
    decisions = bytes([ACCEPT]) * digits
    answer = ids.issue(Recognized("digits", "1", False, bytes(digits), decisions, [False] * digits, [0.5] * digits))
    assert await truths.report([keyed(answer, digits - 1, "0")]) == 1
    assert [thread is not threading.current_thread() for thread in threads] == [aside]


async def test_keying_an_audited_answer_does_not_suppress_its_audit(
    truths: TruthCounter, ids: RecognitionIds, metrics: Metrics
) -> None:
    answer = issue(ids, audited=True)
    assert await truths.report([keyed(answer, 0, "1"), keyed(answer, 0, "1", "audit")]) == 2
    assert value(metrics.registry, "digits_truth_total", source="audit", outcome="wrong") == 1


async def test_an_invalid_image_adds_nothing_to_the_confusion(metrics: Metrics) -> None:
    ids = RecognitionIds([KEY])
    invalid = bytes([Decision.REJECT_INVALID_IMAGE])
    answer = ids.issue(Recognized("digits", "1", False, bytes([7]), invalid, [False], [1.0]))
    assert await TruthCounter(ids, lambda *_: True, metrics).report([keyed(answer, 0, "1")]) == 1
    assert value(metrics.registry, "digits_truth_total", decision="invalid_image", outcome="wrong") == 1
    assert value(metrics.registry, "digits_confusion_total") == 0
    assert value(metrics.registry, "digits_truth_confidence_count") == 0


async def test_truth_of_a_field_is_all_its_digits(truths: TruthCounter, ids: RecognitionIds, metrics: Metrics) -> None:
    assert await truths.report([keyed(issue(ids, of_field=True), 0, value) for value in ("714", "744", "714")]) == 3
    assert value(metrics.registry, "digits_truth_total", unit="field", outcome="right") == 2
    assert value(metrics.registry, "digits_truth_total", unit="field", outcome="wrong") == 1
    assert value(metrics.registry, "digits_confusion_total", true="4", predicted="1") == 1
    assert value(metrics.registry, "digits_confusion_total") == 9


@pytest.mark.parametrize(
    ("of_field", "index", "keyed_value", "source", "reason"),
    [
        (False, 3, "7", "keying", "values has index 3, expected less than 3"),
        (True, 1, "714", "keying", "values has index 1, expected less than 1"),
        (False, 0, "71", "keying", "values[0] is '71', expected 1 digit(s) from 0 to 9"),
        (True, 0, "71", "keying", "values[0] is '71', expected 3 digit(s) from 0 to 9"),
        (False, 0, "y", "keying", "values[0] is 'y', expected 1 digit(s)"),
        (False, 0, "\u0663", "keying", "expected 1 digit(s) from 0 to 9"),
        (False, 0, "7", "audit", "source is audit, but the answer was not marked for audit"),
    ],
)
async def test_a_report_with_one_invalid_truth_is_refused_whole(
    of_field: bool,
    index: int,
    keyed_value: str,
    source: str,
    reason: str,
    truths: TruthCounter,
    ids: RecognitionIds,
    metrics: Metrics,
) -> None:
    good = keyed(issue(ids), 0, "7")
    with pytest.raises(InvalidRequest) as refusal:
        await truths.report([good, keyed(issue(ids, of_field=of_field), index, keyed_value, source)])
    assert str(refusal.value).startswith("truth 1: ")
    assert reason in str(refusal.value)
    assert value(metrics.registry, "digits_truth_total") == 0
    assert await truths.report([good]) == 1


async def test_memory_of_truths_is_bounded_and_keeps_the_recent_ones(
    truths: TruthCounter, ids: RecognitionIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_module, "_MAX_REMEMBERED", 20)
    reported = [keyed(issue(ids), 0, "7") for _ in range(100)]
    for truth in reported:
        assert await truths.report([truth]) == 1
        assert len(truths._recent) + len(truths._older) <= 20
    assert await truths.report(reported[-10:]) == 0


async def test_an_unsigned_id_must_name_a_version_of_this_server(metrics: Metrics) -> None:
    unsigned = RecognitionIds()
    truths = TruthCounter(unsigned, lambda model, version: (model, version) == ("digits", "20261121"), metrics)
    assert await truths.report([keyed(issue(unsigned), 0, "7")]) == 1
    with pytest.raises(
        InvalidRequest,
        match="truth 0: recognition_id has no signature, and names a model version",
    ):
        await truths.report([keyed(issue(unsigned, model="other"), 0, "7")])


async def test_only_a_share_of_accepted_answers_is_marked_for_audit(
    start_server: StartServer, model: Classifier, images: Images
) -> None:
    server = await start_server(audit_rate=0.3, target_error_rate=0.002)

    def call() -> list[Recognition]:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", timeout_seconds=TIMEOUT) as client:
            read = [one for _ in range(4) for one in client.recognize_batch(images)]
            assert sum(client.recognize(images[0], target_error_rate=0.01).audit for _ in range(60)) in range(5, 35)
            fields = [client.read_field(images[:1], target_error_rate=0.01) for _ in range(60)]
            assert sum(field.audit for field in fields) in range(5, 35)
            return read

    read = await asyncio.to_thread(call)
    accepted = [one for one in read if one.decision is ACCEPT]
    assert 0.25 < np.mean([one.audit for one in accepted]) < 0.35
    assert not any(one.audit for one in read if one.decision is not ACCEPT)
    without_audits = await start_server()

    def any_audit() -> bool:
        with DigitClient(f"127.0.0.1:{without_audits.grpc_port}", timeout_seconds=TIMEOUT) as client:
            return any(one.audit for one in client.recognize_batch(images))

    assert not await asyncio.to_thread(any_audit)


def test_truth_through_two_workers_gives_the_expected_counts(tmp_path: Path, images: Images) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-for-the-tests-of-truth\n")
    with running("--workers=2", f"--recognition-key={keys}", "--audit-rate=0.5", "--target-error-rate=0.01") as service:
        answers: list[tuple[Recognition, int]] = []
        clients = [
            DigitClient(service.address, timeout_seconds=TIMEOUT) for _ in range(12)
        ]  # enough connections for both workers to have some
        for number, part in enumerate(np.split(images, 100)):
            answers += [(one, one.digit) for one in clients[number % 12].recognize_batch(part)]
        random = np.random.default_rng(1)
        known = [
            (one, str((read + 1) % 10 if random.random() < 0.1 else read)) for one, read in answers
        ]  # with known errors
        audits = [(one, true) for one, true in known if one.audit]
        keying = [(one, true) for one, true in known if not one.audit]
        for number, client in enumerate(clients):
            assert client.report_truth(audits[number::12], "audit") == len(audits[number::12])
            assert client.report_truth(keying[number::12], "keying") == len(keying[number::12])
            assert client.report_truth(keying[number::12], "keying") == 0, "the same worker has counted them already"
        assert service.scrape("digits_audits_total", unit="digit") == len(audits) > 100
        assert len(keying) > 100

        assert service.scrape("digits_truth_total") == 1000
        confusion = Counter((true, str(one.digit)) for one, true in known)
        for (true, predicted), count in confusion.items():
            assert service.scrape("digits_confusion_total", true=true, predicted=predicted) == count
        wrong = sum(true != str(one.digit) for one, true in audits)
        right_by_keying = np.mean([true == str(one.digit) for one, true in keying])
        assert service.scrape("digits_accuracy_ratio", source="keying") == pytest.approx(right_by_keying)
        assert service.scrape("digits_accepted_error_ratio", bound="estimate") == pytest.approx(wrong / len(audits))
        lower, upper = wilson_interval(wrong, len(audits))
        assert service.scrape("digits_accepted_error_ratio", bound="lower") == pytest.approx(lower)
        assert service.scrape("digits_accepted_error_ratio", bound="upper") == pytest.approx(upper)

        again = sum(client.report_truth([keying[0]], "replay") for client in clients)
        assert again == 2, "each of the two workers counts it once"

        forged = issue(RecognitionIds([OTHER]))
        with pytest.raises(grpc.RpcError) as refusal:
            clients[0].report_truth([(forgery(forged), "7")], "keying")
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "was not issued here: its signature is wrong" in (refusal.value.details() or "")
        whole = clients[0].recognize_batch(np.concatenate([images] * 10))
        assert clients[0].report_truth([(one, str(one.digit)) for one in whole], "replay") == 10_000, "the largest batch"
        with pytest.raises(ValueError, match="source is 'hearsay', expected one of keying, audit, replay"):
            clients[0].report_truth([], "hearsay")
        for client in clients:
            client.close()


def forgery(recognition_id: str) -> Recognition:
    nothing = np.zeros(10, np.float32)
    return Recognition(7, 1.0, nothing, "1", ACCEPT, None, None, recognition_id=recognition_id)


async def test_a_long_report_lets_others_have_the_event_loop(
    truths: TruthCounter, ids: RecognitionIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_SECONDS", 0)
    report = asyncio.Task(truths.report([keyed(issue(ids), 0, "7") for _ in range(100)]))
    others = 0
    while not report.done():
        await asyncio.sleep(0)
        others += 1
    assert report.result() == 100
    assert others >= 200, "while they are parsed, and while they are counted"


async def test_a_report_whose_caller_goes_is_counted_whole(
    truths: TruthCounter, ids: RecognitionIds, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_SECONDS", 0)
    report = asyncio.Task(truths.report([keyed(issue(ids), 0, "7") for _ in range(100)]))
    for _ in range(150):
        await asyncio.sleep(0)
    assert report.cancel()
    for _ in range(200):
        await asyncio.sleep(0)
    assert value(metrics.registry, "digits_truth_total") == 100
