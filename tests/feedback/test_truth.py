import asyncio
import base64
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import Metric

from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.client import Decision, DigitClient, Recognition
from serving.errors import InvalidRequest
from serving.feedback import truth as truths_module
from serving.feedback.accuracy import WithAccuracy, wilson_interval
from serving.feedback.truth import Truth, Truths
from serving.inference.model import Model
from serving.security.credential_files import CredentialsError
from serving.security.signing_keys import read_signing_keys
from serving.telemetry.metrics import Metrics
from tests.conftest import TIMEOUT, StartServer, value
from tests.support.service import service as running
from training import evaluate

Images = NDArray[np.uint8]
KEY, OTHER = b"a key of 32 characters, or so it is", b"another key of 32 characters or so"
ACCEPT, LOW = Decision.ACCEPT, Decision.REJECT_LOW_CONFIDENCE


def issue(ids: RecognitionIds, *, of_field: bool = False, audited: bool = False, model: str = "digits") -> str:
    """The id of 7, 1 and 4, of which the second was rejected; or of 714."""
    decisions = [ACCEPT] if of_field else [ACCEPT, LOW, ACCEPT]
    confidences = np.linspace(0.9, 0.5, len(decisions)).tolist()
    marked = [audited and decision is ACCEPT for decision in decisions]
    return ids.issue(Recognized(model, "20261121", of_field, bytes([7, 1, 4]), bytes(decisions), marked, confidences))


def keyed(recognition_id: str, place: int, said: str, source: str = "keying") -> Truth:
    return Truth(recognition_id, source, {place: said})


@pytest.mark.parametrize("keys", [[], [KEY]], ids=["unsigned", "signed"])
def test_an_id_holds_what_was_answered(keys: list[bytes]) -> None:
    ids = RecognitionIds(keys)
    read = ids.read(issue(ids, audited=True))
    assert (read.model, read.version, read.of_field) == ("digits", "20261121", False)
    assert list(read.digits) == [7, 1, 4]
    assert list(read.decisions) == [ACCEPT, LOW, ACCEPT]
    assert read.audited == [True, False, True]
    assert read.confidences == pytest.approx([0.9, 0.7, 0.5], abs=1e-5)
    field = ids.read(issue(ids, of_field=True))
    assert (field.of_field, list(field.digits), list(field.decisions)) == (True, [7, 1, 4], [ACCEPT])
    assert field.nonce != read.nonce


def test_an_id_that_was_forged_or_spoilt_is_refused_at_any_byte() -> None:
    ids = RecognitionIds([KEY])
    content = base64.urlsafe_b64decode(issue(ids) + "==")
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        with pytest.raises(InvalidRequest, match=r"is not a recognition id|its signature is wrong"):
            ids.read(base64.urlsafe_b64encode(bytes(spoilt)).decode().rstrip("="))
    for forged in (issue(RecognitionIds()), issue(RecognitionIds([OTHER]))):
        with pytest.raises(InvalidRequest, match="its signature is wrong"):
            ids.read(forged)


@pytest.mark.parametrize(
    ("digits", "decisions", "audited", "of_field"),
    [
        ([10], [ACCEPT], [False], False),
        ([7], [0], [False], False),
        ([7], [99], [False], False),
        ([7], [LOW], [True], False),
        ([7] * 19, [ACCEPT], [False], True),
        ([], [], [], False),
    ],
)
def test_an_id_of_what_cannot_have_been_answered_is_refused(
    digits: list[int], decisions: list[int], audited: list[bool], of_field: bool
) -> None:
    ids = RecognitionIds()
    about = (bytes(digits), bytes(decisions), audited, [1.0] * len(decisions))
    with pytest.raises(InvalidRequest, match="is not a recognition id"):
        ids.read(ids.issue(Recognized("digits", "1", of_field, *about)))


@pytest.mark.parametrize("text", ["", "x", "????", "AAAA", "A" * 200, "ä" * 40, "AQAA" * 1000])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a recognition id"):
        RecognitionIds().read(text)


def test_keys_can_be_changed_without_losing_what_is_on_its_way(tmp_path: Path) -> None:
    before = issue(RecognitionIds([KEY]))
    file = tmp_path / "keys"
    file.write_bytes(OTHER + b"\n\n" + KEY + b"\r\n")
    ids = RecognitionIds(read_signing_keys(file))
    assert ids.read(before)
    assert RecognitionIds([OTHER]).read(issue(ids)), "the first key signs"
    for content in (b"", b"too short\n", b"long-enough-to-be-a-key\nshort"):
        file.write_bytes(content)
        with pytest.raises(CredentialsError, match="expected one a line, of 16 characters or more"):
            read_signing_keys(file)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def ids() -> RecognitionIds:
    return RecognitionIds([KEY])


@pytest.fixture
def truths(ids: RecognitionIds, metrics: Metrics) -> Truths:
    return Truths(ids, lambda *_: False, metrics)


async def test_truth_is_counted_by_source_decision_and_outcome_once(
    truths: Truths, ids: RecognitionIds, metrics: Metrics
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


async def test_a_desk_that_keys_an_answer_marked_for_audit_does_not_silence_the_audit(
    truths: Truths, ids: RecognitionIds, metrics: Metrics
) -> None:
    answer = issue(ids, audited=True)
    assert await truths.report([keyed(answer, 0, "1"), keyed(answer, 0, "1", "audit")]) == 2
    assert value(metrics.registry, "digits_truth_total", source="audit", outcome="wrong") == 1


async def test_what_an_invalid_image_was_read_as_is_no_confusion(metrics: Metrics) -> None:
    ids = RecognitionIds([KEY])
    invalid = bytes([Decision.REJECT_INVALID_IMAGE])
    answer = ids.issue(Recognized("digits", "1", False, bytes([7]), invalid, [False], [1.0]))
    assert await Truths(ids, lambda *_: True, metrics).report([keyed(answer, 0, "1")]) == 1
    assert value(metrics.registry, "digits_truth_total", decision="invalid_image", outcome="wrong") == 1
    assert value(metrics.registry, "digits_confusion_total") == 0
    assert value(metrics.registry, "digits_truth_confidence_count") == 0


async def test_truth_of_a_field_is_all_its_digits(truths: Truths, ids: RecognitionIds, metrics: Metrics) -> None:
    assert await truths.report([keyed(issue(ids, of_field=True), 0, said) for said in ("714", "744", "714")]) == 3
    assert value(metrics.registry, "digits_truth_total", unit="field", outcome="right") == 2
    assert value(metrics.registry, "digits_truth_total", unit="field", outcome="wrong") == 1
    assert value(metrics.registry, "digits_confusion_total", true="4", predicted="1") == 1
    assert value(metrics.registry, "digits_confusion_total") == 9


@pytest.mark.parametrize(
    ("of_field", "place", "said", "source", "reason"),
    [
        (False, 3, "7", "keying", "there is no place 3, the answer has 3"),
        (True, 1, "714", "keying", "there is no place 1, the answer has 1"),
        (False, 0, "71", "keying", "'71' is no truth about it, expected 1 digit(s)"),
        (True, 0, "71", "keying", "'71' is no truth about it, expected 3 digit(s)"),
        (False, 0, "x", "keying", "'x' is no truth about it"),
        (False, 0, "\u0663", "keying", "is no truth about it"),
        (False, 0, "7", "audit", "the answer was not marked for audit"),
    ],
)
async def test_a_report_with_a_truth_that_cannot_be_is_refused_whole(
    of_field: bool, place: int, said: str, source: str, reason: str, truths: Truths, ids: RecognitionIds, metrics: Metrics
) -> None:
    good = keyed(issue(ids), 0, "7")
    with pytest.raises(InvalidRequest) as refusal:
        await truths.report([good, keyed(issue(ids, of_field=of_field), place, said, source)])
    assert str(refusal.value).startswith("truth 1: ")
    assert reason in str(refusal.value)
    assert value(metrics.registry, "digits_truth_total") == 0
    assert await truths.report([good]) == 1


async def test_memory_of_truths_is_bounded_and_recent_ones_are_known(
    truths: Truths, ids: RecognitionIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truths_module, "_REMEMBERED", 20)
    reported = [keyed(issue(ids), 0, "7") for _ in range(100)]
    for truth in reported:
        assert await truths.report([truth]) == 1
        assert len(truths._seen) + len(truths._seen_before) <= 20
    assert await truths.report(reported[-10:]) == 0


async def test_an_id_without_a_signature_names_a_version_that_is_there_or_is_refused(metrics: Metrics) -> None:
    unsigned = RecognitionIds()
    truths = Truths(unsigned, lambda model, version: (model, version) == ("digits", "20261121"), metrics)
    assert await truths.report([keyed(issue(unsigned), 0, "7")]) == 1
    with pytest.raises(InvalidRequest, match="truth 0: there is no such version here"):
        await truths.report([keyed(issue(unsigned, model="other"), 0, "7")])


def test_wilsons_interval_is_that_of_his_tables() -> None:
    # by R's prop.test(c(0, 3, 50), c(20, 60, 100), correct = FALSE), one at a time
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(3, 60) == pytest.approx((0.0171, 0.1370), abs=1e-4)
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(7, 300) == pytest.approx(evaluate.wilson_interval(7, 300)), "the halves say the same of the same"


def derived(metrics: Metrics) -> dict[str, Metric]:
    return {metric.name: metric for metric in WithAccuracy(metrics.registry).collect()}


async def test_accuracy_and_the_audited_error_follow_from_the_counts(
    truths: Truths, ids: RecognitionIds, metrics: Metrics
) -> None:
    metrics.truth.labels("digits", "1", "digit", "audit", "accept", "right")  # made, and not yet counted
    assert not derived(metrics)["digits_accuracy_ratio"].samples, "nothing is said of nothing"
    await truths.report([keyed(issue(ids), 0, said) for said in "7772"])
    audited = [issue(ids, audited=True) for _ in range(20)]
    await truths.report([keyed(answer, 0, "1" if number < 3 else "7", "audit") for number, answer in enumerate(audited)])
    found = derived(metrics)
    accuracy = {sample.labels["source"]: sample.value for sample in found["digits_accuracy_ratio"].samples}
    assert accuracy == {"keying": 0.75, "audit": 0.85}
    error = {sample.labels["bound"]: sample.value for sample in found["digits_accepted_error_ratio"].samples}
    assert error["estimate"] == 0.15
    assert (error["lower"], error["upper"]) == wilson_interval(3, 20)


async def test_of_the_accepted_a_share_is_marked_for_audit_and_nothing_else(
    start_server: StartServer, model: Model, images: Images
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
    quiet = await start_server()

    def look() -> bool:
        with DigitClient(f"127.0.0.1:{quiet.grpc_port}", timeout_seconds=TIMEOUT) as client:
            return any(one.audit for one in client.recognize_batch(images))

    assert not await asyncio.to_thread(look)


def test_truth_through_two_workers_adds_up_to_the_arithmetic(tmp_path: Path, images: Images) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-for-the-tests-of-truth\n")
    with running("--workers=2", f"--recognition-key={keys}", "--audit-rate=0.5", "--target-error-rate=0.01") as service:
        answers: list[tuple[Recognition, int]] = []
        clients = [
            DigitClient(service.address, timeout_seconds=TIMEOUT) for _ in range(12)
        ]  # so that both workers have some
        for number, part in enumerate(np.split(images, 100)):
            answers += [(one, one.digit) for one in clients[number % 12].recognize_batch(part)]
        random = np.random.default_rng(1)
        known = [(one, str((read + 1) % 10 if random.random() < 0.1 else read)) for one, read in answers]  # known mistakes
        audits = [(one, true) for one, true in known if one.audit]
        keying = [(one, true) for one, true in known if not one.audit]
        for number, client in enumerate(clients):
            assert client.report_truth(audits[number::12], "audit") == len(audits[number::12])
            assert client.report_truth(keying[number::12], "keying") == len(keying[number::12])
            assert client.report_truth(keying[number::12], "keying") == 0, "the same worker has them already"
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
        assert again == 2, "two workers, each of which counts it once, however often it is reported"

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
