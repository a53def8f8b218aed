import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.feedback.capture_records import NO_DIGIT_BY_FRAMER
from tests.support.captured_store import Store, answers
from tests.support.published import certified
from training.__main__ import main
from training.certificates import certify_answers
from training.dataset import NO_DIGIT, DatasetError
from training.evaluate import FIELD_ERRORS, score, score_fields
from training.exported import Exported
from training.own_mail import captured_mail

Images = NDArray[np.uint8]

LEARNED = {"captured": {"images": 1, "held_out": 1, "repeats": 1, "sha256": "0"}}  # in a run record


def mailed(
    store: Store, images: Images, labels: Images, accepted: NDArray[np.bool_], audit_rate: float, seed: int = 0
) -> list[str]:
    """Captures mail as a service would: rejected images, and accepted ones at the audit rate, with their truth."""
    random = np.random.default_rng(seed)
    ids = answers(len(images), seed)
    for answer, image, label, accept in zip(ids, images, labels, accepted, strict=True):
        if accept and random.random() >= audit_rate:
            continue
        store.capture(answer, image, audited=bool(accept))
        store.report(answer, "x" if label == NO_DIGIT else str(label))
    return ids


def test_captured_mail_is_an_unbiased_sample_of_all_mail(tmp_path: Path, mail: tuple[Images, Images]) -> None:
    images, labels = mail
    accepted = np.arange(3000) % 10 < 7  # a version that rejects far too much
    store = Store(tmp_path / "captured.db")
    mailed(store, images, labels, accepted, audit_rate=0.3)
    sample = captured_mail(store.url, 0.3)
    index = {image.tobytes(): number for number, image in enumerate(images)}
    numbers = np.array([index[image.tobytes()] for image in sample.mail.images])
    np.testing.assert_array_equal(sample.mail.labels, labels[numbers])
    assert len(numbers) == pytest.approx(900, abs=100), "every piece is in the sample with the same probability"
    assert accepted[numbers].mean() == pytest.approx(0.7, abs=0.06), "captured images alone would be 41 % accepted"
    origin = sample.origin
    assert (origin["accepted"], origin["rejected"]) == (accepted[numbers].sum(), (~accepted[numbers]).sum())
    assert origin["thinned_out"] == (~accepted).sum() - origin["rejected"]
    again = captured_mail(store.url, 0.3)
    assert again.origin["sha256"] == origin["sha256"], "the sample can't be drawn again until it pleases"


def test_a_version_is_certified_on_captured_mail(
    version: Path, mail: tuple[Images, Images], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = mail
    confidence, correct = score(Exported(version / "model.onnx").answers(images)[1], labels)
    store = Store(tmp_path / "captured.db")
    mailed(store, images, labels, confidence >= np.float64(0.999), audit_rate=0.9)
    command = ["certify", str(version), "--captured", store.url, "--audit-rate", "0.9", "--risk", "0.05"]
    assert main(command) == 0
    record = json.loads((certified(version) / "run.json").read_text())
    found = record["thresholds"]["0.01"]
    assert found["threshold"] < 0.999, "thinned rejects certify a looser threshold than the one in force"
    exact = certify_answers(confidence, correct, [0.01], 0.05)["0.01"]
    assert exact is not None
    assert found["coverage"] == pytest.approx(exact["coverage"], abs=0.02)
    assert record["fields"] == {}, "no field was captured"
    assert (record["mail"]["kind"], record["mail"]["audit_rate"], record["risk"]) == ("captured", 0.9, 0.05)
    assert "thinned\nout to the same rate" in (certified(version) / "MODEL_CARD.md").read_text()
    assert f"answers sampled from {store.url}" in record["certified_on"]


@pytest.mark.parametrize(("created", "part"), [("2026-01-01", "every fifth answer"), ("1969-01-01", "the answers since")])
def test_a_version_that_learned_from_captures_is_certified_on_others(
    created: str, part: str, version: Path, mail: tuple[Images, Images], tmp_path: Path
) -> None:
    store = Store(tmp_path / "captured.db")
    ids = mailed(store, *mail, np.ones(3000, bool), audit_rate=1)
    record = json.loads((version / "run.json").read_text())
    (version / "run.json").write_text(json.dumps(record | LEARNED | {"created": f"{created}T00:00:00+00:00"}))
    assert main(["certify", str(version), "--captured", store.url, "--audit-rate", "1", "--risk", "0.3"]) == 0
    about = json.loads((certified(version) / "run.json").read_text())["mail"]
    assert about["part"].startswith(part)
    fifth = sum(int(answer, 16) % 5 == 0 for answer in ids)
    assert about["answers"] == (fifth if part == "every fifth answer" else 3000)


def test_captured_fields_are_certified_by_their_length(version: Path, mail: tuple[Images, Images], tmp_path: Path) -> None:
    images, labels = mail
    store = Store(tmp_path / "captured.db")
    for number, answer in enumerate(answers(600)):
        piece = slice(number * 5, number * 5 + 5)
        store.capture(answer, *images[piece], field_length=5, audited=True)
        store.report(answer, "".join(map(str, labels[piece])))
    store.capture("00000000000000aa", *images[:2], field_length=3, audited=True)
    store.report("00000000000000aa", "123")
    assert main(["certify", str(version), "--captured", store.url, "--audit-rate", "1", "--risk", "0.05"]) == 0
    record = json.loads((certified(version) / "run.json").read_text())
    assert list(record["fields"]) == ["5"]
    fives = score_fields(*score(Exported(version / "model.onnx").answers(images)[1], labels), 5)
    assert {error: found and found["threshold"] for error, found in record["fields"]["5"]["thresholds"].items()} == {
        error: found and found["threshold"] for error, found in certify_answers(*fives, FIELD_ERRORS, 0.05, 5).items()
    }
    assert record["mail"]["incomplete"] == 1, "a field of which a digit is missing"
    assert record["thresholds"]["0.01"] is not None, "without single digits, the digits of fields count as such"


def test_accepted_mail_without_a_digit_counts_as_an_error(
    version: Path, mail: tuple[Images, Images], tmp_path: Path
) -> None:
    images, labels = mail[0][:1000], mail[1][:1000].copy()
    store = Store(tmp_path / "captured.db")
    mailed(store, images, np.where(np.arange(1000) % 20, labels, NO_DIGIT), np.ones(1000, bool), audit_rate=1)
    assert main(["certify", str(version), "--captured", store.url, "--audit-rate", "1", "--risk", "0.1"]) == 1
    assert not [path for path in version.parent.iterdir() if path != version]


def test_images_that_only_the_framer_refused_are_accepted_by_no_threshold(
    version: Path, mail: tuple[Images, Images], tmp_path: Path
) -> None:
    images, labels = mail
    store = Store(tmp_path / "captured.db")
    for number, answer in enumerate(answers(1000)):  # the framer refused each tenth piece, which shows another digit
        doubted = number % 10 == 0
        store.capture(answer, images[number], rejected=NO_DIGIT_BY_FRAMER if doubted else "not_certified")
        store.report(answer, str((labels[number] + 1) % 10 if doubted else labels[number]))
    for number, answer in enumerate(answers(400, seed=1)):  # and a digit of each tenth field
        piece = np.arange(1000 + number * 5, 1005 + number * 5)
        truth = labels[piece].copy()
        for place, index in enumerate(piece):
            decision = NO_DIGIT_BY_FRAMER if number % 10 == place == 0 else "no_digit"
            store.capture(answer, images[index], place=place, field_length=5, rejected=decision)
        if number % 10 == 0:
            truth[0] = (truth[0] + 1) % 10
        store.report(answer, "".join(map(str, truth)))
    command = ["certify", str(version), "--captured", store.url, "--audit-rate", "1", "--risk", "0.05", "--replace"]
    assert main(command) == 0
    record = json.loads((certified(version) / "run.json").read_text())
    found, fields = record["thresholds"]["0.01"], record["fields"]["5"]["thresholds"]["0.05"]
    assert 0.8 < found["coverage"] <= 0.9, "the others are as good as ever"
    assert 0.8 < fields["coverage"] <= 0.9
    assert record["mail"]["refused_by_framer"] == 100 + 40


def test_missing_truth_is_refused_because_it_may_be_the_hard_mail(tmp_path: Path, mail: tuple[Images, Images]) -> None:
    store = Store(tmp_path / "captured.db")
    for number, answer in enumerate(answers(100)):
        store.capture(answer, mail[0][number], audited=True)
        if number >= 10:
            store.report(answer, str(mail[1][number]))
    with pytest.raises(DatasetError, match=r"truth is missing about 10 of 100 sampled answers, more than 5%"):
        captured_mail(store.url, 0.5)
    empty = Store(tmp_path / "empty.db")
    with pytest.raises(DatasetError, match="has no image to certify on: nothing was captured"):
        captured_mail(empty.url, 0.5)
