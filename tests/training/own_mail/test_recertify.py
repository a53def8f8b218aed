import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.answers.lexicon import Lexicon
from serving.inference.model import open_model
from tests.support.captured_store import Store, answers
from tests.support.model_files import publish_whole
from tests.support.published import certified
from training.__main__ import main
from training.certificates import certify_answers
from training.certify import upper_bound
from training.evaluate import ERRORS, score, score_fields
from training.exported import Exported
from training.mail import Mail
from training.own_mail import LexiconFile, mail_of
from training.own_mail.lexicon import fields_of_codes, lookup
from training.own_mail.shortfall import explain, mail_needed
from training.sketch import sketch
from training.sources import load_dataset

Images = NDArray[np.uint8]


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
    served = open_model((new / "model.onnx").read_bytes(), new.name)
    assert served.metadata.thresholds


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


def test_a_single_field_without_an_error_needs_more_mail() -> None:
    reason = explain("fields of 5", np.ones(1), np.ones(1, bool), 0.005, 0.001)
    found = re.fullmatch(r"1 field of 5 \(0 misread\) is too few: about (1,[0-9]{3}) more are needed to accept .*", reason)
    assert found, reason
    assert 1378 <= int(found[1].replace(",", "")) < 1378 * 1.1, "0.995 to the power of 1379 is 0.001"


def test_captured_fields_that_show_no_code_of_the_lexicon_are_counted(
    version: Path, mail: tuple[Images, Images], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, fields = Store(tmp_path / "captured.db"), mail[1].reshape(-1, 5)
    (tmp_path / "towns.txt").write_text("".join(f"{''.join(map(str, field))}\n" for field in fields[:150].tolist()))
    for answer, images, digits in zip(answers(600), mail[0].reshape(-1, 5, 28, 28), fields, strict=True):
        for place, image in enumerate(images):
            store.capture(answer, image, place=place, field_length=5, audited=True)
        store.report(answer, "".join(map(str, digits)))
    command = ["certify", str(version), "--captured", store.url, "--audit-rate", "1", "--risk", "0.3"]
    main([*command, "--lexicon", str(tmp_path / "towns.txt")])
    count = sum(field not in fields[:150].tolist() for field in fields.tolist())
    unlisted = f"{count} of 600 show no code of the lexicon, and each of them that is accepted is misread"
    assert f"lexicon    fields of 5, lexicon towns: {unlisted}" in capsys.readouterr().out
    assert main([*command, "--transposed"]) == 2
    assert "--transposed is for --data" in capsys.readouterr().err


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
    for answer, image, label in zip(answers(1100), images[1900:], labels[1900:], strict=True):
        store.capture(answer, image, audited=True)
        store.report(answer, str(label))
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
