import json
from pathlib import Path

import pytest

from serving.cli.main import main
from serving.samples.draw import FIELD, SAMPLES, draw
from tests.cli.conftest import Digits
from tests.support.service import Service

FILES = [SAMPLES / "field" / f"{position}.jpg" for position in range(1, 6)]


def test_the_sample_field_is_read_and_accepted(digits: Digits) -> None:
    status, shown, errors = digits("field", *FILES)
    assert (status, errors) == (0, "")
    lines = [line.split(maxsplit=1) for line in shown.splitlines()]
    assert [line[0] for line in lines[:4]] == ["value", "confidence", "decision", "candidates"]
    assert [line[1] for line in lines[:3]][::2] == [FIELD, "accept"]
    assert [line[0] for line in lines[-2:]] == ["audit", "id"]
    candidates = [shown.splitlines()[3].removeprefix("candidates"), *shown.splitlines()[4:8]]
    assert [line.split()[0] for line in candidates] == [*FIELD]
    assert all(len(line.split()) == 6 for line in candidates)


def test_a_field_with_its_lexicon_is_shown_as_json(digits: Digits) -> None:
    status, shown, _ = digits("field", "--json", "--lexicon", "zip", "--target-error-rate", "0.02", *FILES)
    answer = json.loads(shown)
    assert (status, answer["value"], answer["decision"], answer["audit"]) == (0, FIELD, "accept", True)
    assert answer["target_error_rate"] <= 0.02
    assert [max(each, key=each.get) for each in answer["candidates"]] == [*FIELD]


def test_another_model_reads_the_field(digits: Digits) -> None:
    version = json.loads(digits("field", "--json", "--model", "digits-flagship", *FILES)[1])["version"]
    assert version != json.loads(digits("field", "--json", *FILES)[1])["version"]


def test_an_unknown_lexicon_is_refused_with_status_1(digits: Digits) -> None:
    status, shown, errors = digits("field", "--lexicon", "none", *FILES)
    assert (status, shown) == (1, "")
    assert errors.startswith("digits field: 127.0.0.1:")
    assert "INVALID_ARGUMENT: " in errors
    assert "zip" in errors


def test_a_field_with_an_unreadable_file_is_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["field", "--address", "127.0.0.1:1", str(FILES[0]), str(tmp_path / "none.jpg")]) == 1
    assert capsys.readouterr().err == f"digits field: {tmp_path}/none.jpg: No such file or directory\n"


def test_a_crop_that_the_service_cannot_read_is_named(digits: Digits, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    status, shown, errors = digits("field", "--crops", FILES[0], broken)
    assert status == 1
    assert "reject_invalid_image" in shown
    assert errors.startswith(f"digits field: {broken}: ")


def test_a_field_with_an_empty_crop_is_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    assert main(["field", "--crops", "--address", "127.0.0.1:1", str(FILES[0]), str(empty)]) == 1
    reason = "neither a PNG nor a JPEG, but 0 bytes of something else"
    assert capsys.readouterr().err == f"digits field: {empty}: {reason}\n"


def test_a_field_of_framed_images_is_not_framed_again(digits: Digits, running: Service) -> None:
    before = running.scrape("digits_framing_seconds_count")
    images = [SAMPLES / "9.png", SAMPLES / "0.png"]
    assert json.loads(digits("field", "--json", *images)[1])["value"] == "90"
    assert running.scrape("digits_framing_seconds_count") == before
    assert json.loads(digits("field", "--json", "--crops", *images)[1])["value"] == "90"
    assert running.scrape("digits_framing_seconds_count") == before + 2


def test_all_files_of_a_field_are_crops_if_one_is(digits: Digits, running: Service) -> None:
    before = running.scrape("digits_framing_seconds_count")
    status, shown, _ = digits("field", "--json", FILES[0], SAMPLES / "0.png", FILES[2])
    assert (status, json.loads(shown)["value"]) == (0, "902")
    assert running.scrape("digits_framing_seconds_count") == before + 3


def test_raw_bytes_beside_crops_in_a_field_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "7.raw"
    raw.write_bytes(draw(7).tobytes())
    assert main(["field", "--address", "127.0.0.1:1", str(raw), str(FILES[0])]) == 1
    reason = "784 raw bytes are an image, and can't be sent as a crop, as the other files are"
    assert capsys.readouterr() == ("", f"digits field: {raw}: {reason}\n")
