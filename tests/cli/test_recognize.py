import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from serving.cli import images
from serving.cli.main import main
from serving.client import DigitClient, Recognition
from serving.client.image_files import read_file
from serving.samples.draw import PHOTO_DIGIT, SAMPLES, draw
from tests.cli.conftest import Digits
from tests.support.calls import TIMEOUT
from tests.support.credentials import Files, issue, root
from tests.support.service import DIGITS, Service, service

SEVEN = draw(7)
OWN_RATE = ["--target-error-rate", "0"]


def save(image: Image.Image, file: Path) -> Path:
    image.save(file)
    return file


def test_an_unreadable_file_and_an_absent_server_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recognize", "--address", "127.0.0.1:1", str(SAMPLES / "7.png"), str(tmp_path / "none.png")]
    assert main(command) == 1
    complaint = capsys.readouterr().err
    assert f"{tmp_path / 'none.png'}: No such file or directory" in complaint
    assert "127.0.0.1:1: UNAVAILABLE" in complaint
    assert "--tls-ca" not in complaint


def test_digits_recognize_shows_a_line_per_file(digits: Digits) -> None:
    status, shown, errors = digits("recognize", SAMPLES / "7.png", SAMPLES / "photo.jpg")
    assert (status, errors) == (0, "")
    assert [line.split()[::3] for line in shown.splitlines()] == [
        [str(SAMPLES / "7.png"), "accept"],
        [str(SAMPLES / "photo.jpg"), "accept"],
    ]
    assert [line.split()[1] for line in shown.splitlines()] == ["7", str(PHOTO_DIGIT)]


def test_json_has_all_that_the_service_answers(digits: Digits) -> None:
    flags = ("--model", "digits-flagship", "--target-error-rate", "0.002", "--key", "a")
    status, shown, _ = digits("recognize", "--json", "--crops", *flags, *[SAMPLES / "photo.jpg"] * 2)
    answers = [json.loads(line) for line in shown.splitlines()]
    assert status == 0
    assert [answer["index"] for answer in answers] == [0, 1]
    assert {answer["digit"] for answer in answers} == {PHOTO_DIGIT}
    assert {answer["target_error_rate"] for answer in answers} == {0.002}
    assert answers[0]["recognition_id"] == answers[1]["recognition_id"]
    assert {"file", "confidence", "decision", "threshold", "version", "audit", "captured"} < answers[0].keys()


def test_many_files_are_sent_in_several_calls(digits: Digits, running: Service) -> None:
    before = running.scrape("digits_requests_total", method="RecognizeBatch")
    shown = digits("recognize", "--json", *[SAMPLES / "7.png"] * 250)[1]
    assert [json.loads(line)["index"] for line in shown.splitlines()] == [*range(100), *range(100), *range(50)]
    assert running.scrape("digits_requests_total", method="RecognizeBatch") == before + 3


def test_large_crops_are_sent_in_calls_below_the_message_limit(digits: Digits, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500), np.uint8)
    large = save(Image.fromarray(noise), tmp_path / "large.png")
    assert large.stat().st_size > 1_000_000
    shown = digits("recognize", "--json", "--crops", *[large] * 5)[1]
    assert [json.loads(line)["index"] for line in shown.splitlines()] == [0, 1, 0, 1, 0]


def test_files_are_read_as_their_call_is_due(digits: Digits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500), np.uint8)
    large = save(Image.fromarray(noise), tmp_path / "large.png")
    steps: list[str] = []
    real_read, real_call = read_file, DigitClient.recognize_batch

    def read(path: Path) -> bytes:
        steps.append("read")
        return real_read(path)

    def call(*arguments: Any, **options: Any) -> list[Recognition]:
        steps.append("call")
        return real_call(*arguments, **options)

    monkeypatch.setattr(images, "read_file", read)
    monkeypatch.setattr(DigitClient, "recognize_batch", call)
    digits("recognize", "--crops", *[large] * 5)
    assert " ".join(steps) == "read read read call read read call call"


def test_an_error_rate_of_0_is_the_services_own(digits: Digits) -> None:
    answers = [json.loads(digits("recognize", "--json", *flags, SAMPLES / "7.png")[1]) for flags in ([], OWN_RATE)]
    assert answers[0]["target_error_rate"] == answers[1]["target_error_rate"] > 0


@pytest.mark.parametrize("flags", [(), ("--crops",)])
def test_a_crop_that_the_service_cannot_read_is_named(digits: Digits, tmp_path: Path, flags: tuple[str, ...]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    status, shown, errors = digits("recognize", *flags, broken, SAMPLES / "photo.jpg")
    assert status == 1
    assert "reject_invalid_image" in shown.splitlines()[0]
    assert "accept" in shown.splitlines()[1]
    assert errors.startswith(f"digits recognize: {broken}: neither a PNG nor a JPEG")


@pytest.mark.parametrize("side", [28, 30], ids=["framed", "crop"])
def test_a_file_without_ink_is_rejected_by_the_service(digits: Digits, tmp_path: Path, side: int) -> None:
    blank = save(Image.new("L", (side, side)), tmp_path / "blank.png")
    status, shown, errors = digits("recognize", "--json", blank)
    assert (status, errors, json.loads(shown)["decision"]) == (0, "", "reject_invalid_image")


def test_images_and_crops_take_a_call_each_and_keep_their_order(digits: Digits, running: Service) -> None:
    before = running.scrape("digits_requests_total", method="RecognizeBatch")
    files = [SAMPLES / "7.png", SAMPLES / "photo.jpg", SAMPLES / "4.png", SAMPLES / "field" / "1.jpg"]
    status, shown, _ = digits("recognize", "--json", *files)
    answers = [json.loads(line) for line in shown.splitlines()]
    assert (status, [answer["file"] for answer in answers]) == (0, [*map(str, files)])
    assert [answer["digit"] for answer in answers] == [7, PHOTO_DIGIT, 4, 9]
    assert [answer["index"] for answer in answers] == [0, 0, 1, 1]
    assert answers[0]["recognition_id"] == answers[2]["recognition_id"] != answers[1]["recognition_id"]
    assert running.scrape("digits_requests_total", method="RecognizeBatch") == before + 2


def test_a_file_of_28_pixels_a_side_is_a_crop_on_request(digits: Digits, running: Service) -> None:
    before = running.scrape("digits_framing_seconds_count")
    assert digits("recognize", SAMPLES / "7.png")[0] == 0
    assert running.scrape("digits_framing_seconds_count") == before
    assert digits("recognize", "--crops", SAMPLES / "7.png")[1].split()[1] == "7"
    assert running.scrape("digits_framing_seconds_count") == before + 1


def test_raw_bytes_are_no_crop(digits: Digits, tmp_path: Path) -> None:
    raw = tmp_path / "7.raw"
    raw.write_bytes(SEVEN.tobytes())
    assert digits("recognize", raw)[1].split()[1] == "7"
    status, shown, errors = digits("recognize", "--crops", raw, SAMPLES / "photo.jpg")
    assert (status, len(shown.splitlines())) == (1, 1)
    assert errors == f"digits recognize: {raw}: 784 raw bytes are an image, and can't be sent as a crop\n"


def test_an_empty_crop_is_named_and_the_other_files_are_answered(digits: Digits, tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    status, shown, errors = digits("recognize", "--crops", empty, SAMPLES / "photo.jpg", "/dev/null")
    reason = "neither a PNG nor a JPEG, but 0 bytes of something else"
    assert (status, len(shown.splitlines())) == (1, 1)
    assert shown.startswith(f"{SAMPLES / 'photo.jpg'}  {PHOTO_DIGIT}  ")
    assert errors == "".join(f"digits recognize: {file}: {reason}\n" for file in (empty, "/dev/null"))
    assert digits("recognize", empty)[2] == f"digits recognize: {empty}: {reason}\n"


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_a_file_name_that_is_not_utf8_is_escaped(running: Service, tmp_path: Path, flags: list[str]) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    files = [odd, tmp_path / "7.png", tmp_path / odd.stem]
    for file in files[:2]:
        file.write_bytes((SAMPLES / "7.png").read_bytes())
    command = [*DIGITS, "recognize", "--address", running.address, *flags, *map(str, files)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert (ran.returncode, ran.stderr) == (1, f"digits recognize: {tmp_path}/\\udcff: No such file or directory\n")
    lines = ran.stdout.splitlines()
    shown = [json.loads(line)["file"] for line in lines] if flags else [line.split("  ")[0] for line in lines]
    assert shown == [f"{tmp_path}/\\udcff.png", f"{tmp_path}/7.png"]


def test_answers_on_a_full_disk_end_with_status_1(running: Service) -> None:
    command = [*DIGITS, "recognize", "--address", running.address, str(SAMPLES / "7.png")]
    with Path("/dev/full").open("wb") as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    assert (ended.returncode, ended.stderr) == (1, "digits: can't write the output: No space left on device\n")


def test_an_unknown_model_is_refused_with_status_1(digits: Digits) -> None:
    status, shown, errors = digits("recognize", "--model", "none", SAMPLES / "7.png")
    assert (status, shown) == (1, "")
    assert "NOT_FOUND: there is no model 'none'" in errors


def test_a_call_without_the_tls_flags_gets_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority, files = trustme.CA(), Files(tmp_path)
    files.put(issue(authority), authority)
    foreign = tmp_path / "foreign.crt"
    foreign.write_bytes(root(trustme.CA()))
    flags = ["--tls-certificate", files.certificate, "--tls-key", files.key, "--tls-client-ca", files.client_ca]
    hint = "; does the server want TLS (--tls-ca) or a client certificate (--tls-certificate)?\n"
    with service("--workers", "1", "--drain-seconds", "0", *map(str, flags)) as started:
        for given in ([], ["--tls-ca", str(files.client_ca)], ["--tls-ca", str(foreign)]):
            assert main(["recognize", "--address", started.address, *given, str(SAMPLES / "7.png")]) == 1
            message = capsys.readouterr().err
            assert message.startswith(f"digits recognize: {started.address}: UNAVAILABLE: ")
            assert message.endswith(hint)


def test_tls_flags_for_a_service_without_tls_get_a_hint(digits: Digits, tmp_path: Path) -> None:
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(root(trustme.CA()))
    status, _, errors = digits("recognize", "--tls-ca", trusted, SAMPLES / "7.png")
    assert status == 1
    assert errors.endswith("; does the server serve without TLS? then leave --tls-ca out\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target-error-rate", "2"], "expected a number between 0 and 1, not 2"),
        (["--target-error-rate", "-0.1"], "expected a number between 0 and 1, not -0.1"),
        (["--target-error-rate", "low"], "expected a number between 0 and 1, not low"),
        (["--timeout", "0"], "--timeout must be a number above 0, not 0"),
        (["--tls-key", "x"], "--tls-certificate and --tls-key are needed together"),
    ],
)
def test_flags_that_cannot_be_used_end_with_status_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["recognize", *flags, "7.png"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
