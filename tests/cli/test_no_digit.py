import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from serving.cli.main import main
from serving.samples.draw import SAMPLES
from tests.cli.conftest import Digits
from tests.imaging.cases import CASES
from tests.support.model_files import SPECK, publish_whole
from tests.support.service import Service, service

SEVEN = SAMPLES / "7.png"


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a model of contract 2."""
    models = tmp_path_factory.mktemp("models")
    publish_whole(models, 1)
    with service("--workers", "1", "--models", str(models), "--drain-seconds", "0") as started:
        yield started


@pytest.fixture
def speck(tmp_path: Path) -> Path:
    """A file with an image that is no digit to the model."""
    file = tmp_path / "speck.png"
    Image.fromarray(SPECK).save(file)
    return file


def test_the_line_of_a_file_says_that_it_is_not_one_whole_digit(
    judging: Service, speck: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recognize", "--address", judging.address, str(SEVEN), str(speck)]) == 0
    seven, other = capsys.readouterr().out.splitlines()
    assert seven.endswith("  accept")
    assert other.endswith("  reject_no_digit  not one whole digit (0.1000)")
    assert main(["recognize", "--json", "--address", judging.address, str(speck)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["decision"], answer["whole"]) == ("reject_no_digit", 0.1)


def test_a_field_names_the_files_that_are_not_one_whole_digit(
    judging: Service, speck: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(file) for file in (SEVEN, speck, SEVEN, speck)]
    assert main(["field", "--address", judging.address, *files]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["decision", "reject_no_digit"]
    assert lines[3] == ["no", f"digit    image 2, {speck} (0.1000)"]
    assert " ".join(lines[4]) == f"image 4, {speck} (0.1000)"
    assert main(["field", "--json", "--address", judging.address, *files]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["no_digits"], answer["whole"]) == ([1, 3], [0.9, 0.1, 0.9, 0.1])


def test_the_truth_may_be_no_digit(judging: Service, speck: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recognize", "--ids", "--address", judging.address, str(speck)]) == 0
    number = capsys.readouterr().out.split()[-1]
    assert main(["truth", "--address", judging.address, number, "x"]) == 0
    assert capsys.readouterr().out == "counted\n"
    assert judging.scrape("digits_no_digit_truth_total", unit="digit", outcome="refused") == 1
    assert main(["field", "--json", "--address", judging.address, str(SEVEN), str(speck)]) == 0
    number = json.loads(capsys.readouterr().out)["recognition_id"]
    assert main(["truth", "--address", judging.address, number, "7x"]) == 0
    assert judging.scrape("digits_no_digit_truth_total", unit="field", outcome="refused") == 1


@pytest.mark.parametrize("name", ["comma.png", "dash.png", "two_digits_47.png"])
def test_a_crop_is_rejected_as_no_digit_as_the_service_judges_it(digits: Digits, name: str) -> None:
    status, shown, errors = digits("recognize", "--json", CASES / name, SAMPLES / "photo.jpg")
    answers = [json.loads(line) for line in shown.splitlines()]
    assert (status, errors) == (0, "")
    assert [answer["decision"] for answer in answers] == ["reject_no_digit", "accept"]
    assert answers[0]["whole"] == 0


def test_a_crop_that_is_no_digit_rejects_its_field(digits: Digits) -> None:
    status, shown, errors = digits("field", "--json", SAMPLES / "photo.jpg", CASES / "comma.png")
    answer = json.loads(shown)
    assert (status, errors, answer["decision"], answer["no_digits"]) == (0, "", "reject_no_digit", [1])


def test_a_framed_file_whose_framing_has_doubts_is_shown_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    comma = CASES / "comma.png"
    assert main(["frame", str(comma)]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 28
    assert shown.err == f"digits frame: {comma}: may not show one whole digit: the service rejects such a crop as no digit\n"
