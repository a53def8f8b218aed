import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.lexicon import Lexicon
from serving.feedback.capture_records import NO_DIGIT_BY_FRAMER
from serving.inference.model import open_model
from serving.repository.versions import ModelVersion
from tests.support.captured_store import Store, answers
from tests.support.drawings import draw_many
from tests.support.model_files import publish_whole
from training.__main__ import main
from training.certificates import certify_answers
from training.certify import upper_bound
from training.dataset import NO_DIGIT, DatasetError
from training.evaluate import ERRORS, FIELD_ERRORS, score, score_fields
from training.exported import Exported
from training.mail import Mail
from training.own_mail import LexiconFile, captured_mail, mail_of
from training.own_mail.lexicon import fields_of_codes, lookup
from training.own_mail.shortfall import explain, mail_needed
from training.sketch import sketch
from training.sources import load_dataset

Images = NDArray[np.uint8]

LEARNED = {"captured": {"images": 1, "held_out": 1, "repeats": 1, "sha256": "0"}}  # in a run record


@pytest.fixture
def version(bundled: ModelVersion, tmp_path: Path) -> Path:
    """A version to certify, in a repository of its own."""
    return Path(shutil.copytree(bundled.path.parent, tmp_path / "models" / "digits" / "1"))


@pytest.fixture(scope="module")
def mail() -> tuple[Images, Images]:
    """Drawn digits in random order, through which other digits shine faintly: 3,000 images, and their labels."""
    images, labels = draw_many(3000, seed=5)
    random = np.random.default_rng(0)
    order, behind = random.permutation(3000), random.permutation(3000)
    shining = images[order] + random.uniform(0, 0.25, (3000, 1, 1)) * images[behind]
    return np.minimum(shining, 255).astype(np.uint8), labels[order]


def certified(version: Path) -> Path:
    """The newest version that was published beside `version`."""
    return max((path for path in version.parent.iterdir() if path != version), key=lambda path: int(path.name))


def metadata(version: Path, name: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(Exported(version / "model.onnx").metadata[name])
    return found


def test_a_version_gets_the_thresholds_of_your_own_mail(
    version: Path, mail: tuple[Images, Images], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = mail
    np.savez(tmp_path / "own.npz", images=images, labels=labels, writers=np.arange(3000) // 60)
    before = (version / "run.json").read_bytes(), (version / "model.onnx").read_bytes()
    assert main(["certify", str(version), "--data", str(tmp_path / "own.npz"), "--risk", "0.01"]) == 0
    new = certified(version)
    assert f"published  {new}" in capsys.readouterr().out
    assert ((version / "run.json").read_bytes(), (version / "model.onnx").read_bytes()) == before

    old_answers, answers_ = (Exported(each / "model.onnx").answers(images) for each in (version, new))
    for old, same in zip(old_answers, answers_, strict=True):
        np.testing.assert_array_equal(old, same)
    writers = np.arange(3000) // 60
    record = json.loads((new / "run.json").read_text())
    digits = score(answers_[1], labels)
    assert record["thresholds"]["0.01"] is not None
    assert {error: found and found["threshold"] for error, found in record["thresholds"].items()} == {
        error: found and found["threshold"] for error, found in certify_answers(*digits, ERRORS, 0.01).items()
    }
    by_writer = certify_answers(*digits, ERRORS, 0.01, writers=writers)["0.01"]
    assert by_writer is not None
    assert record["thresholds"]["0.01"]["by_writer"] == pytest.approx(by_writer["by_writer"])
    assert {error: found["threshold"] for error, found in metadata(new, "thresholds").items()} == {
        error: found["threshold"] for error, found in record["thresholds"].items() if found
    }
    assert {length: field["fields"] for length, field in record["fields"].items()} == {
        str(length): 3000 // length for length in range(2, 11)
    }
    assert record["certified"] == {"images": 3000, "writers": 50}, "not what the old version was certified on"
    assert record["made_from"] == "1"
    assert record["certified_on"].startswith("3,000 images of own.npz (npz), 50 writers; fields put together from them; ")
    assert (record["mail"]["kind"], record["mail"]["training_images"] + record["mail"]["test_images"]) == ("npz", 3000)
    card = (new / "MODEL_CARD.md").read_text()
    assert card.index(record["certified_on"]) < card.index("## Model Details"), "the card begins with it"
    assert "was not\nfitted to the mail" in card
    served = open_model(new / "model.onnx", new.name)
    assert served.metadata.thresholds


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


def test_too_little_mail_is_refused_with_the_number_that_is_missing(
    version: Path, mail: tuple[Images, Images], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "own.npz", images=mail[0][:100], labels=mail[1][:100])
    assert main(["certify", str(version), "--data", str(tmp_path / "own.npz")]) == 1
    error = capsys.readouterr().err
    assert "no threshold can be certified on this mail; digits, error at most 1.0%: 100 digits" in error
    assert "more are needed to accept half of them" in error
    assert [path.name for path in version.parent.iterdir()] == ["1"]


def test_the_mail_needed_is_that_of_the_exact_bound() -> None:
    confidence, correct = np.linspace(0, 1, 200), np.ones(200, bool)
    needed = mail_needed(confidence, correct, 0.01, 0.001)
    assert needed is not None
    assert 688 <= needed < 688 * 1.1 + 1, "0.99 to the power of 688 is 0.001"
    correct[100:] = np.arange(100) % 2 == 0
    assert mail_needed(confidence, correct, 0.01, 0.001) is None
    assert "more mail of this kind would not help" in explain("digits", confidence, correct, 0.01, 0.001)


def test_the_data_that_a_version_was_trained_on_are_refused(
    version: Path, mail: tuple[Images, Images], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "own.npz", images=mail[0], labels=mail[1])
    record = json.loads((version / "run.json").read_text())
    trained_on = load_dataset(str(tmp_path / "own.npz")).sha256
    (version / "run.json").write_text(json.dumps(record | {"dataset_sha256": trained_on}))
    assert main(["certify", str(version), "--data", str(tmp_path / "own.npz")]) == 1
    assert "was trained on" in capsys.readouterr().err
    assert main(["certify", str(version), "--captured", "sqlite:///x.db"]) == 2
    assert "--captured needs --audit-rate" in capsys.readouterr().err
    assert main(["certify", str(version), "--data", "sqlite:///x.db"]) == 2
    assert "use --captured with --audit-rate" in capsys.readouterr().err


def test_mail_that_contains_training_images_is_refused(
    version: Path, mail: tuple[Images, Images], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = mail
    record = json.loads((version / "run.json").read_text())
    (version / "run.json").write_text(json.dumps(record | {"training_sketch": sketch(images[:2000])}))
    store = Store(tmp_path / "captured.db")
    mailed(store, images[1900:], labels[1900:], np.ones(1100, bool), audit_rate=1)
    np.savez(tmp_path / "own.npz", images=images[1900:], labels=labels[1900:])
    for source in (["--data", str(tmp_path / "own.npz")], ["--captured", store.url, "--audit-rate", "1"]):
        assert main(["certify", str(version), *source, "--risk", "0.3"]) == 1
        assert f"was trained on images of {source[1]}" in capsys.readouterr().err
    np.savez(tmp_path / "own.npz", images=images[2000:], labels=labels[2000:])
    assert main(["certify", str(version), "--data", str(tmp_path / "own.npz"), "--risk", "0.3"]) == 0


def test_field_thresholds_hold_with_a_lexicon_and_without(
    version: Path, mail: tuple[Images, Images], tmp_path: Path
) -> None:
    np.savez(tmp_path / "own.npz", images=mail[0], labels=mail[1])
    codes = np.random.default_rng(3).choice(100_000, 500, replace=False)
    (tmp_path / "towns.txt").write_text("".join(f"{code:05}\n" for code in codes))
    command = ["certify", str(version), "--data", str(tmp_path / "own.npz"), "--risk", "0.05"]
    assert main(command) == 0
    plain = json.loads((certified(version) / "run.json").read_text())["fields"]["5"]["thresholds"]
    assert main([*command, "--lexicon", str(tmp_path / "towns.txt")]) == 0
    fields = json.loads((certified(version) / "run.json").read_text())["fields"]
    assert [length for length, field in fields.items() if "lexicon" in field] == ["5"]
    found = fields["5"]["lexicon"]
    assert (found["name"], found["codes"]) == ("towns", 500)
    exported, towns = Exported(version / "model.onnx"), LexiconFile.read(tmp_path / "towns.txt")
    sample = mail_of(load_dataset(str(tmp_path / "own.npz")))
    shown = fields_of_codes(sample.mail, towns.codes[5])
    _, probabilities, whole = exported.outputs(sample.mail.images)
    kept = np.ones(3000, bool) if whole is None else whole >= float(exported.metadata["whole_threshold"])
    confidence, correct = score(probabilities, sample.mail.labels)
    alone = score_fields(np.where(kept, confidence, 0), correct, 5)
    looked_up = lookup(towns.lexicon, probabilities[shown], sample.mail.labels[shown])
    ways = alone, (np.where(kept[shown].all(axis=1), looked_up[0], 0), looked_up[1])
    for target, threshold in fields["5"]["thresholds"].items():
        stricter = [each and each["threshold"] for each in (plain[target], found["thresholds"][target])]
        assert threshold is None or threshold["threshold"] == max(stricter)
        for confidence, correct in ways if threshold else ():
            accepted = confidence >= np.float64(threshold["threshold"])
            assert upper_bound((accepted & ~correct).sum(), accepted.sum(), 0.05) <= float(target)
    assert fields["5"]["thresholds"]["0.05"] is not None
    assert "read with the lexicon towns (SHA-256" in (certified(version) / "MODEL_CARD.md").read_text()


def test_made_up_fields_show_codes_and_use_no_image_twice(mail: tuple[Images, Images]) -> None:
    images, labels = mail
    codes = np.array([[1, 2, 3], [9, 9, 0]], np.uint8)
    fields = fields_of_codes(Mail(images, labels, np.arange(3000), {}, None), codes)
    assert len(fields) > 100
    assert len(np.unique(fields)) == fields.size
    assert {tuple(code) for code in labels[fields].tolist()} == {(1, 2, 3), (9, 9, 0)}


def test_fields_are_looked_up_as_the_service_does(tmp_path: Path) -> None:
    (tmp_path / "towns.txt").write_text("123\n128\n")
    likely = np.full((3, 3, 10), 0.01)
    for field, digits in enumerate(([1, 2, 3], [1, 2, 5], [7, 7, 7])):
        likely[field, np.arange(3), digits] = 0.91
    likely[1, 2, 5], likely[1, 2, 8] = 0.5, 0.42
    confidence, correct = lookup(
        Lexicon.from_file(tmp_path / "towns.txt"), likely, np.array([[1, 2, 3], [1, 2, 8], [7, 7, 7]])
    )
    assert correct.tolist() == [True, True, True]
    assert confidence[0] > 0.9
    assert confidence[2] == 0, "the service rejects a field that is more likely not in the lexicon"


def test_an_image_that_the_model_calls_no_whole_digit_is_never_accepted(
    version: Path, mail: tuple[Images, Images], tmp_path: Path
) -> None:
    images, labels = mail[0].copy(), mail[1]
    images[::5] //= 12  # read as well as the others, but with too little ink to be a digit to this model
    publish_whole(tmp_path / "models", 1)
    record = json.loads((version / "run.json").read_text())
    (version / "run.json").write_text(json.dumps(record | {"whole": record["whole"] | {"threshold": 0.5}}))
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    assert main(["certify", str(version), "--data", str(tmp_path / "own.npz"), "--risk", "0.05"]) == 0
    found = json.loads((certified(version) / "run.json").read_text())["thresholds"]["0.01"]
    assert 0.75 < found["coverage"] <= 0.8
    assert Exported(certified(version) / "model.onnx").metadata["whole_threshold"] == "0.5"
