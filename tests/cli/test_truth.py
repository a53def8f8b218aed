import json

import pytest

from serving.cli.main import main
from serving.samples.draw import FIELD, SAMPLES
from tests.cli.conftest import Digits
from tests.cli.test_field import FILES
from tests.support.service import Service


def test_truth_about_a_field_is_counted_once_per_source(digits: Digits, running: Service) -> None:
    number = json.loads(digits("field", "--json", *FILES)[1])["recognition_id"]
    before = running.scrape("digits_truth_total", unit="field", outcome="right")
    assert digits("truth", number, FIELD) == (0, "counted\n", "")
    before_it = "counted before, from the source keying: metrics keep the first value, captured images take this one\n"
    assert digits("truth", number, FIELD) == (0, before_it, "")
    assert digits("truth", "--source", "audit", number, FIELD) == (0, "counted\n", "")
    assert running.scrape("digits_truth_total", unit="field", outcome="right") == before + 2


def test_the_ids_of_recognize_can_be_pasted_after_truth(digits: Digits, running: Service) -> None:
    shown = digits("recognize", "--ids", SAMPLES / "7.png", SAMPLES / "4.png")[1]
    seven, four = (line.split()[4:] for line in shown.splitlines())
    assert len(seven) == 1
    assert four == [*seven, "--index", "1"]
    wrong = running.scrape("digits_truth_total", unit="digit", outcome="wrong", source="replay")
    assert digits("truth", *seven, "7")[:2] == (0, "counted\n")
    assert digits("truth", "--source", "replay", *four, "8")[:2] == (0, "counted\n")
    assert running.scrape("digits_truth_total", unit="digit", outcome="wrong", source="replay") == wrong + 1


@pytest.mark.parametrize("arguments", [("nonsense", "7"), ("AQ", "7")])
def test_an_id_that_the_service_never_gave_is_refused_with_status_1(digits: Digits, arguments: tuple[str, ...]) -> None:
    status, shown, errors = digits("truth", *arguments)
    assert (status, shown) == (1, "")
    assert "INVALID_ARGUMENT: " in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ID", "seven"], "argument VALUE: expected one digit, or the digits of a field, or x for no digit, not 'seven'"),
        (["ID", "7", "--index", "-1"], "argument --index: expected "),
        (["ID", "7", "--source", "guess"], "invalid choice: 'guess'"),
        (["ID"], "the following arguments are required: VALUE"),
    ],
)
def test_arguments_that_cannot_be_used_end_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["truth", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
