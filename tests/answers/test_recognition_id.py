import base64
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.answers import recognition_id
from serving.answers.decision import Decision
from serving.answers.recognition_id import MOST_DIGITS, RecognitionIds, Recognized
from serving.errors import InvalidRequest
from serving.security.credential_files import CredentialsError
from serving.security.signing_keys import read_signing_keys
from serving.settings import Settings
from tests.support.truths import KEY, issue

OTHER = b"another key of 32 characters or so"
ACCEPT, LOW = Decision.ACCEPT, Decision.REJECT_LOW_CONFIDENCE


@pytest.mark.parametrize("keys", [[], [KEY]], ids=["unsigned", "signed"])
def test_an_id_holds_the_answer(keys: list[bytes]) -> None:
    ids = RecognitionIds(keys)
    digits = ids.parse(issue(ids, audited=True))
    assert (digits.model, digits.version, digits.of_field) == ("digits", "20261121", False)
    assert list(digits.digits) == [7, 1, 4]
    assert list(digits.decisions) == [ACCEPT, LOW, ACCEPT]
    assert digits.audited == [True, False, True]
    assert digits.confidences == pytest.approx([0.9, 0.7, 0.5], abs=1e-5)
    field = ids.parse(issue(ids, of_field=True))
    assert (field.of_field, list(field.digits), list(field.decisions)) == (True, [7, 1, 4], [ACCEPT])
    assert field.nonce != digits.nonce


def test_a_forged_or_altered_id_is_refused_at_any_byte() -> None:
    ids = RecognitionIds([KEY])
    content = base64.urlsafe_b64decode(issue(ids) + "==")
    for index in range(len(content)):
        altered = bytearray(content)
        altered[index] ^= 1
        with pytest.raises(InvalidRequest, match=r"is not a recognition id|its signature is wrong"):
            ids.parse(base64.urlsafe_b64encode(bytes(altered)).decode().rstrip("="))
    for forged in (issue(RecognitionIds()), issue(RecognitionIds([OTHER]))):
        with pytest.raises(InvalidRequest, match="its signature is wrong"):
            ids.parse(forged)


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
def test_an_id_of_an_impossible_answer_is_refused(
    digits: list[int], decisions: list[int], audited: list[bool], of_field: bool
) -> None:
    ids = RecognitionIds()
    about = (bytes(digits), bytes(decisions), audited, [1.0] * len(decisions))
    with pytest.raises(InvalidRequest, match="is not a recognition id"):
        ids.parse(ids.issue(Recognized("digits", "1", of_field, *about)))


@pytest.mark.parametrize("text", ["", "x", "????", "AAAA", "A" * 200, "ä" * 40, "AQAA" * 1000])
def test_text_that_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a recognition id"):
        RecognitionIds().parse(text)


def test_ids_signed_with_the_previous_key_stay_valid(tmp_path: Path) -> None:
    before = issue(RecognitionIds([KEY]))
    file = tmp_path / "keys"
    file.write_bytes(OTHER + b"\n\n" + KEY + b"\r\n")
    ids = RecognitionIds(read_signing_keys(file))
    assert ids.parse(before)
    assert RecognitionIds([OTHER]).parse(issue(ids)), "the first key signs"
    for content in (b"", b"too short\n", b"long-enough-to-be-a-key\nshort"):
        file.write_bytes(content)
        with pytest.raises(CredentialsError, match="expected one a line, of 16 characters or more"):
            read_signing_keys(file)


def test_an_id_of_a_server_before_no_digit_is_still_parsed() -> None:
    issued = (  # by release 0.1.0
        "AQAGCAABAgMEBQYHAwAAAGRpZ2l0czIwMjYxMTIxBwEEgQIDZuYyswCAJeEyjWZI2ykpySl2tij6zQ"
    )
    answer = RecognitionIds([KEY]).parse(issued)
    assert (answer.model, answer.version, list(answer.digits)) == ("digits", "20261121", [7, 1, 4])
    assert list(answer.decisions) == [ACCEPT, LOW, Decision.REJECT_INVALID_IMAGE]
    assert answer.audited == [True, False, False]


@pytest.mark.parametrize("of_field", [False, True])
def test_an_id_holds_that_the_image_was_no_digit(of_field: bool) -> None:
    ids, refused = RecognitionIds([KEY]), bytes([Decision.REJECT_NO_DIGIT])
    answer = ids.parse(ids.issue(Recognized("digits", "1", of_field, bytes([7]), refused, [False], [0.9])))
    assert answer.decisions == refused


def test_the_longest_id_of_any_setting_is_read_and_a_longer_one_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, count = RecognitionIds([KEY]), MOST_DIGITS
    with pytest.raises(ValidationError):
        Settings(max_images_per_request=count + 1)
    decisions = bytes([ACCEPT]) * count
    longest = ids.issue(Recognized("m" * 255, "1" * 255, False, bytes(count), decisions, [False] * count, [1.0] * count))
    assert ids.parse(longest).digits == bytes(count)
    monkeypatch.setattr(base64, "b64decode", None)
    with pytest.raises(InvalidRequest, match=r"^a recognition id of 6000000 characters was not issued here"):
        ids.parse("A" * 6_000_000)


def test_the_signature_is_checked_before_the_digits_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognition_id, "_split", None)
    with pytest.raises(InvalidRequest, match="its signature is wrong"):
        RecognitionIds([KEY]).parse(issue(RecognitionIds([OTHER])))
